"""What data/image_pairs.py expects of TRL: where the text of a pair with images is parted, and how it becomes ids.

Read again: `apply_chat_template` in trl/data_utils.py for the prompt that both sides start with, and in
`DataCollatorForVisionPreference.torch_call` the three calls of the processor. That the tokens are the same is tested in
tests/data/test_image_pairs.py.
"""

from __future__ import annotations

import inspect

import pytest
from reading_trl import leaning
from trl import data_utils
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference


@pytest.mark.parametrize(
    "text", ["takewhile(lambda x: x[0] == x[1], zip(prompt, prompt_chosen", "chosen = prompt_chosen[len(prompt) :]"]
)
def test_the_prompt_is_what_it_shares_with_both_sides_character_by_character(text):
    assert text in inspect.getsource(data_utils.apply_chat_template), leaning("data/image_pairs.py", text)


@pytest.mark.parametrize("text", ["text=prompts", "text=chosens", "text=rejecteds", "add_special_tokens=False"])
def test_each_part_is_tokenised_by_itself(text):
    source = inspect.getsource(DataCollatorForVisionPreference.torch_call)
    assert text in source, leaning("data/image_pairs.py", text)
