"""What commands/show.py takes for TRL's defaults where DPOConfig's source leaves them open.

Read again: `_BaseConfig.__post_init__` and `TrainingArguments.__post_init__`, for fields whose default is None.
"""

from __future__ import annotations

from reading_trl import leaning
from transformers.utils import logging
from trl import DPOConfig


def test_what_dpoconfig_makes_of_the_defaults_it_leaves_open(tmp_path, monkeypatch):
    monkeypatch.setattr(logging._get_library_root_logger(), "level", logging.WARNING)  # as in a process of its own
    config = DPOConfig(output_dir=str(tmp_path), use_cpu=True)  # or else bf16 is refused without a GPU
    assert config.bf16 is True, leaning("commands/show.py", "bf16=None becomes True")
    assert config.disable_tqdm is False, leaning("commands/show.py", "disable_tqdm=None becomes False")
