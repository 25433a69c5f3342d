"""A model that is no longer the one that a run was trained with: no verb answers or measures with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from making import make_adapter, quiet, short_recipe, train_in

from dpo_recipes import LoRA, RecipeError, Run, chat, evaluate, export
from dpo_recipes.models.weight_hash import hash_of_weights

REFUSED = "has other weights than when .* was trained: policy or reference would not be those of that run"
VERBS = {
    "evaluate": lambda run, pairs, to: evaluate(run, console=quiet()),
    "evaluate on other pairs": lambda run, pairs, to: evaluate(run, data=str(pairs), console=quiet()),
    "chat": lambda run, pairs, to: chat(run, ["Where is the lamp?"], max_new_tokens=2),
    "export --merged": lambda run, pairs, to: export(run, merged=True, out=to),
    "export --dial": lambda run, pairs, to: export(run, dial=0.5, out=to),
    "Run.load_model": lambda run, pairs, to: run.load_model(),
}


class Trained(NamedTuple):
    """A run, and the folder of one of its models, with what belongs there and what does not."""

    run: Run
    place: Path
    own: Path
    other: Path

    def put(self, folder: Path) -> None:
        shutil.rmtree(self.place)
        shutil.copytree(folder, self.place)


@pytest.fixture(scope="module")
def on_a_folder(tiny, pairs_file, tmp_path_factory) -> Trained:
    """A run of an adapter on a copy of the tiny model."""
    folder = tmp_path_factory.mktemp("run")
    place = Path(shutil.copytree(tiny(), folder / "base"))
    run = train_in(folder, short_recipe(place, pairs_file, answers=2))
    return Trained(run, place, tiny(), tiny(seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_no_verb_takes_another_base(on_a_folder, pairs_file, tmp_path, verb: Callable):
    run, to = on_a_folder.run, tmp_path / "to"
    before = run.evaluation
    on_a_folder.put(on_a_folder.other)
    try:
        with pytest.raises(RecipeError, match=f"^model='{on_a_folder.place}' {REFUSED}") as refused:
            verb(run, pairs_file, to)
    finally:
        on_a_folder.put(on_a_folder.own)
    assert f'remove "weights" from {run.path}/reference.json' in str(refused.value)
    assert not to.exists() and run.evaluation == before
    run.load_model()  # on the base that was put back


@pytest.mark.slow
def test_whoever_knows_better_takes_the_weights_out_of_reference_json(on_a_folder):
    run, file = on_a_folder.run, on_a_folder.run.path / "reference.json"
    kept = file.read_text()
    assert run.weights == {"model": {"sha256": hash_of_weights(on_a_folder.own), "commit": None}}
    on_a_folder.put(on_a_folder.other)
    file.write_text(json.dumps({name: value for name, value in json.loads(kept).items() if name != "weights"}))
    try:
        assert run.weights == {}
        run.load_model()
    finally:
        file.write_text(kept)
        on_a_folder.put(on_a_folder.own)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["model", "reference", "adapter.continue_from"])
def test_so_it_is_of_every_model_that_a_recipe_names(tiny, pairs_file, tmp_path, field):
    """In full fine-tuning the start weights are the reference."""
    other = tiny(seed=1)
    place = tmp_path / "place"
    changes: dict = {"adapter": None}
    if field == "adapter.continue_from":
        make_adapter(place, tiny())
        other = make_adapter(tmp_path / "other", tiny(), seed=2)
        changes = {"adapter": LoRA(continue_from=str(place))}
    else:
        shutil.copytree(tiny(), place)
    if field == "reference":
        changes = {"reference": str(place)}
    model = place if field == "model" else tiny()
    run = train_in(tmp_path, short_recipe(model, pairs_file, answers=2, **changes))
    assert run.weights[field]["sha256"] == hash_of_weights(place)
    evaluate(run, console=quiet())

    Trained(run, place, place, other).put(other)
    for verb in ("evaluate", "chat"):
        with pytest.raises(RecipeError, match=f"^{field}='{place}' {REFUSED}"):
            VERBS[verb](run, pairs_file, tmp_path)
