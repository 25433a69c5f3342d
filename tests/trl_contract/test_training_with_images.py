"""What training/with_images.py expects of TRL's trainer and collator of pairs with images.

Read again: `DataCollatorForVisionPreference` whole; of `DPOTrainer.__init__` what depends on `_is_vision_dataset`;
`_set_signature_columns_if_needed`; `compute_loss`, for what it says of images that were cut.
"""

from __future__ import annotations

import inspect

import pytest
from making import make_image
from reading_trl import assert_still_reads, leaning
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

COLLATE = inspect.getsource(DataCollatorForVisionPreference.torch_call)


def row(folder, side: int = 40) -> dict:
    from PIL import Image

    def message(role, *content):
        return [{"role": role, "content": list(content)}]

    def text(words):
        return {"type": "text", "text": words}

    image = Image.open(make_image(folder / f"{side}.png", side, side))
    return {
        "images": [image],
        "prompt": message("user", {"type": "image"}, text("What is it?")),
        "chosen": message("assistant", text("a lamp")),
        "rejected": message("assistant", text("a cat")),
    }


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        ("__init__", '"image" in dataset_sample or "images" in dataset_sample', "a column of this name tells"),
        ("__init__", "skip_prepare_dataset = self._is_vision_dataset", "rows reach the collator as they are"),
        (
            "__init__",
            "if self._is_vision_dataset and args.precompute_ref_log_probs:",
            "nothing is precomputed of images, so that the reference reads them in each step",
        ),
        ("_set_signature_columns_if_needed", '"chat_template_kwargs",', "the columns that the collator reads stay"),
        ("compute_loss", "Image features and image tokens do not match", "only some models notice a cut image"),
    ],
)
def test_the_source_reads_as_it_did(method, text, why):
    assert_still_reads("training/with_images.py", method, text, why)


@pytest.mark.parametrize(
    "text",
    [
        "input_ids = input_ids[:, : self.max_length]",
        "if self.pad_to_multiple_of is not None:",
        'prepare_multimodal_messages(example["prompt"], images=example["images"])',
    ],
)
def test_the_collator_reads_as_it_did(text):
    assert text in COLLATE, leaning("training/with_images.py", f"DataCollatorForVisionPreference: {text}")


def test_max_length_cuts_through_an_image_without_a_word_until_the_model_sees_it(tiny_vision, tmp_path):
    """Why pairs are dropped beforehand whose images do not fit: some models would read the rest of an image."""
    processor = AutoProcessor.from_pretrained(tiny_vision())
    batch = DataCollatorForVisionPreference(processor, max_length=30)([row(tmp_path)])
    fact = "the collator itself says nothing of an image that it cuts"
    assert batch["input_ids"].shape[1] == 30 and not batch["completion_mask"].any(), leaning(
        "training/with_images.py", fact
    )
    del batch["completion_mask"]
    model = AutoModelForImageTextToText.from_pretrained(tiny_vision())
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model(**batch)


def test_tools_are_left_out_where_there_are_images(tiny_vision, tmp_path):
    """Why rows with both are dropped while they are read."""
    processor = AutoProcessor.from_pretrained(tiny_vision())
    processor.chat_template = "{{ tools }}" + processor.chat_template
    with_tools = DataCollatorForVisionPreference(processor)([row(tmp_path) | {"tools": [{"name": "clock"}]}])
    fact = "the collator renders pairs without their tools"
    assert "clock" not in processor.decode(with_tools["input_ids"][0]), leaning("training/with_images.py", fact)
