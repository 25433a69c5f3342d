"""The model of a finished run; that it is the one that was trained is asserted where runs are made."""

from __future__ import annotations

import pytest

from dpo_recipes import RecipeError
from dpo_recipes.models.trained import load_trained


def test_a_run_that_has_not_finished_has_no_model_to_load(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(RecipeError, match="model holds no model: the run has not finished"):
        load_trained(tmp_path / "model", {})
