"""What training/tqdm_bars.py switches off of the bars of TRL and of the libraries below it.

Read again: the progress bars of `DPOTrainer.__init__` and `DPOTrainer._precompute_ref_logps`.
"""

from __future__ import annotations

import importlib

import pytest
from reading_trl import SOURCE, leaning


def test_the_bar_of_the_reference_pass_is_silenced_by_an_environment_variable():
    text = 'os.environ.get("TQDM_DISABLE"'
    assert text in SOURCE["_precompute_ref_logps"], leaning("training/tqdm_bars.py", "TQDM_DISABLE silences the bar")


@pytest.mark.parametrize(
    ("module", "name"), [("transformers.utils.logging", "disable_progress_bar"), ("datasets", "disable_progress_bars")]
)
def test_a_name_that_we_import_is_there(module, name):
    assert hasattr(importlib.import_module(module), name), leaning("training/tqdm_bars.py", f"{module}.{name}")
