"""What an error says that ends a run while it trains."""

from __future__ import annotations

import pytest
from making import make_recipe

from dpo_recipes import Data, LoRA, RecipeError
from dpo_recipes.runs.unfinished import run_folder


@pytest.mark.parametrize("is_logged", [False, True])
def test_a_stream_that_breaks_off_is_one_message_and_says_what_there_is_of_the_run(tmp_path, monkeypatch, is_logged):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    rows = Data("org/pairs", streaming=True, eval="test")
    recipe = make_recipe(data=rows, adapter=LoRA(r=4), trl={"max_steps": 2})
    with pytest.raises(RecipeError) as told, run_folder(recipe, tmp_path, None) as run:
        if is_logged:
            (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
        raise ConnectionError("Server Disconnected")
    said = str(told.value)
    assert "The rows of org/pairs broke off: the connection to" in said and "(Server Disconnected). Connect" in said
    assert (f"What there is of the run stays in {run.path}." in said) == run.path.exists() == is_logged


def test_a_connection_that_is_not_of_the_rows_keeps_its_error(tmp_path):
    with pytest.raises(ConnectionError), run_folder(make_recipe(), tmp_path, None):
        raise ConnectionError("a peer has gone")
