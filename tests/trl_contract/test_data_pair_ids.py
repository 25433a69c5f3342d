"""What data/pair_ids.py repeats of TRL's rendering and tokenising, so that the ids are exactly TRL's.

Read again: `DPOTrainer._prepare_dataset` whole. tests/data/test_tokenize.py compares the ids with those that TRL makes.
"""

from __future__ import annotations

import pytest
from reading_trl import assert_still_reads


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("if not is_conversational(first_example):", "an end token is added to text alone"),
        ('if not example["chosen"].endswith(eos_token):', "and only where the text has none"),
        ("add_generation_prompt=True", "the prompt of a conversation ends as if an answer followed"),
        ('{"tools": tools, **example.get("chat_template_kwargs", {})}', "what a row gives to the template"),
    ],
)
def test_the_source_reads_as_it_did(text, why):
    assert_still_reads("data/pair_ids.py", "_prepare_dataset", text, why)
