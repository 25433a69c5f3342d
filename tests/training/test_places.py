"""What can be had is known within a second: local, on the hub, in the cache, or one message that names all of it."""

from __future__ import annotations

import functools
import importlib
import io
import os
import time

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http
from making import make_pairs, write_jsonl
from rich.console import Console

from dpo_recipes import Data, Recipe, RecipeError
from dpo_recipes.recipe.catalogue import load
from dpo_recipes.training import places as hub

httpx = importlib.import_module(type(huggingface_hub.get_session()).__module__.split(".")[0])
MODEL, DATA = "someone/small-model", "someone/some-pairs"


class FakeHub:
    """The hub's answers by repository, through the library's own client; it counts what it was asked."""

    def __init__(self):
        self.asked: list[str] = []
        self.answers: dict[str, object] = {}

    def __call__(self, request):
        if not request.url.path.startswith(("/api/models/", "/api/datasets/")):
            return httpx.Response(404)  # the library's own questions
        self.asked.append(request.url.path)
        found = [answer for name, answer in self.answers.items() if name in request.url.path]
        answer = found[0] if found else 200
        if isinstance(answer, Exception):
            raise answer
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        body = {"id": "x/y", "modelId": "x/y", "siblings": [], "tags": [], "downloads": 0, "likes": 0, "private": False}
        return httpx.Response(status, headers=headers, json=body)


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A hub that answers, an empty cache, and everything the module switches put back afterwards."""
    fake = FakeHub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT", httpx.Client(transport=httpx.MockTransport(fake)))
    return fake


@pytest.fixture
def unreachable(world):
    world.answers[""] = httpx.ConnectError("[Errno -3] Temporary failure in name resolution")
    return world


def cached(kind: str, name: str) -> None:
    folder = f"{constants.HF_HUB_CACHE}/{kind}s--{name.replace('/', '--')}/snapshots/0123abc"
    os.makedirs(folder)


# ------------------------------------------------------------------------------------------------------- what is local


def test_local_names_ask_nothing_of_the_hub(tiny, pairs_file, world, monkeypatch):
    for method in ("model_info", "dataset_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, method, lambda *args, **kwargs: pytest.fail("the hub was asked"))
    for data in (str(pairs_file), str(pairs_file.parent), os.path.relpath(pairs_file)):
        hub.require([str(tiny()), str(tiny())], None, [data], None)
    assert world.asked == []


def test_a_folder_that_exists_needs_no_dot_before_its_name(tmp_path, world, monkeypatch):
    """As in Transformers and in our reading of data: what is here is not looked for elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_pairs").mkdir()
    (tmp_path / "runs" / "a" / "model").mkdir(parents=True)
    hub.require(["my_model", "runs/a/model"], None, ["my_pairs"], None)
    with pytest.raises(RecipeError, match="revision='v1' does nothing: my_model is a folder here"):
        hub.require(["my_model"], "v1", ["my_pairs"], None)
    assert world.asked == []


def test_the_users_folder_is_meant_by_a_tilde(tmp_path, world, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(2))
    hub.require(["~/model"], None, ["~/pairs.jsonl"], None)
    assert world.asked == []


@pytest.mark.parametrize("model", ["/no/such/folder", "./model", "../model", "~/no-such-model"])
def test_a_model_folder_that_is_missing_is_named_before_anything_is_asked(model, world):
    with pytest.raises(RecipeError, match=f"model={model!r}: there is no such folder"):
        hub.require([model], None, [DATA], None)
    assert world.asked == []


def test_a_file_is_no_model_folder(pairs_file, world):
    with pytest.raises(RecipeError, match=f"is a file.* holds this file: model={pairs_file.parent}"):
        hub.require([str(pairs_file)], None, [str(pairs_file)], None)


@pytest.mark.parametrize("data", ["pairs.jsonl", "./pairs", "/nowhere/pairs.parquet", "sub/pairs.csv.gz"])
def test_a_data_file_that_is_missing_is_named_before_anything_is_asked(data, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=f"{data} does not exist"):
        hub.require([MODEL], None, [data], None)
    assert world.asked == []


def test_a_data_file_misspelt_names_the_nearest(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(2))
    with pytest.raises(RecipeError, match="Did you mean 'pairs.jsonl'"):
        hub.require([MODEL], None, ["pair.jsonl"], None)


# ---------------------------------------------------------------------------------------------------------- on the hub


def test_each_name_is_asked_once_with_its_own_revision(world):
    hub.require([MODEL, "someone/reference"], "v1.0", [DATA], "main")
    assert world.asked == [
        f"/api/models/{MODEL}/revision/v1.0",
        "/api/models/someone/reference",
        f"/api/datasets/{DATA}/revision/main",
    ]
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {"X-Error-Code": "RepoNotFound"}), "is not on the hub, or is private or gated. Check the spelling"),
        ((401, {}), "is not on the hub, or is private or gated"),  # how the hub says 404 to a stranger
        ((403, {"X-Error-Code": "GatedRepo"}), "is private or gated. .* run `hf auth login`"),
        ((403, {}), "is private or gated. .* run `hf auth login`"),
        ((401, {"X-Error-Message": "Invalid credentials in Authorization header"}), "hf auth login"),
        ((404, {"X-Error-Code": "RevisionNotFound"}), "has no revision 'v9' on the hub"),
    ],
)
def test_a_refusal_of_the_hub_is_not_taken_for_a_missing_network(world, answer, message):
    for name, at in ((MODEL, f"model={MODEL!r}"), (DATA, f"data.path={DATA!r}")):
        world.answers = {name: answer}
        with pytest.raises(RecipeError, match=message) as refused:
            hub.require([MODEL], "v9", [DATA], "v9")
        assert str(refused.value).startswith(at)
        assert constants.HF_HUB_OFFLINE is False and os.environ["HF_HUB_OFFLINE"] == "0"


def test_every_data_set_of_a_mix_is_looked_at(world, pairs_file):
    hub.require([MODEL], None, [DATA, str(pairs_file), "other/pairs"], "main")
    assert world.asked[1:] == [f"/api/datasets/{name}/revision/main" for name in (DATA, "other/pairs")]
    with pytest.raises(RecipeError, match="^/nowhere/pairs.csv does not exist"):
        hub.require([MODEL], None, [DATA, "/nowhere/pairs.csv"], None)
    world.answers = {"other/pairs": 404}
    with pytest.raises(RecipeError, match="^data.mix='other/pairs' is not on the hub, or is private or gated"):
        hub.require([MODEL], None, [DATA, "other/pairs"], None)


@pytest.mark.parametrize("name", ["a/b/c", "no spaces/here", "-dash/x", "x" * 97])
def test_a_name_that_is_no_hub_id_is_refused_without_asking(world, name):
    with pytest.raises(RecipeError, match="is neither a folder or file here nor a hub id"):
        hub.require([name], None, [DATA], None)
    with pytest.raises(RecipeError, match="data.path=.* is neither a folder or file here nor a hub id"):
        hub.require([MODEL], None, [name], None)
    assert [path for path in world.asked if MODEL not in path] == []


# ------------------------------------------------------------------------------------------------------- out of reach


@pytest.mark.parametrize("failure", ["ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError", 500, 503, 429])
def test_a_hub_that_does_not_answer_is_one_message_at_once(world, monkeypatch, failure):
    def wait(seconds):
        raise AssertionError(f"it waits {seconds} seconds before it asks again")

    monkeypatch.setattr(time, "sleep", wait)
    world.answers[""] = failure if isinstance(failure, int) else getattr(httpx, failure)("no route")
    with pytest.raises(RecipeError) as error:
        hub.require([MODEL], None, [DATA], None)
    said = str(error.value)
    state = f"answers with HTTP status {failure}" if isinstance(failure, int) else "cannot be reached"
    assert said == (
        f"{constants.ENDPOINT} {state}, and this machine has no copy of model {MODEL} and data set {DATA}. "
        "Connect and run again, or name local ones: model=/path/to/folder data.path=/path/to/pairs.jsonl"
    )
    assert len(world.asked) == 1  # the second name is not tried as well


def test_afterwards_the_libraries_are_offline(unreachable):
    cached("model", MODEL)
    cached("dataset", DATA)
    hub.require([MODEL], None, [DATA], None)
    assert constants.HF_HUB_OFFLINE is True and os.environ["HF_HUB_OFFLINE"] == "1"
    assert huggingface_hub.is_offline_mode()
    hub.require([MODEL], None, [DATA], None)
    assert len(unreachable.asked) == 1


def test_only_what_is_missing_is_named(unreachable, pairs_file):
    cached("dataset", DATA)
    with pytest.raises(RecipeError) as error:
        hub.require([MODEL, "someone/reference"], None, [DATA], None)
    assert f"no copy of model {MODEL} and model someone/reference. Connect" in str(error.value)
    cached("model", MODEL)
    cached("model", "someone/reference")
    hub.require([MODEL, "someone/reference"], None, [DATA], None)
    with pytest.raises(RecipeError) as error:
        hub.require([MODEL], None, ["other/pairs"], None)
    assert "no copy of data set other/pairs. " in str(error.value) and "model=" not in str(error.value)


def test_each_missing_data_set_of_a_mix_is_named_and_the_remedy_once(unreachable, pairs_file):
    cached("model", MODEL)
    with pytest.raises(RecipeError) as error:
        hub.require([MODEL, "someone/reference"], None, [DATA, str(pairs_file), "other/pairs"], None)
    assert str(error.value).endswith(
        f"no copy of model someone/reference and data set {DATA} and data set other/pairs. Connect and run again, or "
        "name local ones: reference=/path/to/folder data.mix={'/path/to/pairs.jsonl': 1.0, ...}"
    )
    cached("model", "someone/reference")
    cached("dataset", DATA)
    cached("dataset", "other/pairs")
    hub.require([MODEL, "someone/reference"], None, [DATA, str(pairs_file), "other/pairs"], None)


def test_a_name_misspelt_offline_is_compared_with_what_is_at_hand(unreachable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").mkdir()
    cached("model", MODEL)
    cached("dataset", DATA)
    with pytest.raises(RecipeError, match=f"no copy of model someone/smal-model. Did you mean '{MODEL}'"):
        hub.require(["someone/smal-model"], None, [DATA], None)
    with pytest.raises(RecipeError, match="no copy of model my_modle. Did you mean 'my_model'"):
        hub.require(["my_modle"], None, [DATA], None)


def test_an_empty_cache_folder_is_no_copy(unreachable):
    os.makedirs(f"{constants.HF_HUB_CACHE}/models--someone--small-model/snapshots")
    cached("dataset", DATA)
    with pytest.raises(RecipeError, match=f"no copy of model {MODEL}"):
        hub.require([MODEL], None, [DATA], None)


@pytest.mark.parametrize("variable", [False, True])
def test_a_data_set_that_was_prepared_once_is_a_copy(unreachable, tmp_path, monkeypatch, variable):
    cached("model", MODEL)
    root = tmp_path / ("elsewhere" if variable else "home/datasets")
    if variable:
        monkeypatch.setenv("HF_DATASETS_CACHE", str(root))
    (root / "someone___some-pairs" / "default").mkdir(parents=True)
    hub.require([MODEL], None, [DATA], None)
    assert constants.HF_HUB_OFFLINE is True


def test_who_is_offline_by_choice_is_not_told_that_the_hub_is_down(world, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        RecipeError, match=f"is not asked, because HF_HUB_OFFLINE is set, and .* no copy of model {MODEL}"
    ):
        hub.require([MODEL], None, [DATA], None)
    cached("model", MODEL)
    cached("dataset", DATA)
    hub.require([MODEL], None, [DATA], None)
    assert world.asked == []


# ------------------------------------------------------------------------------------------------------------ prepared

CALLS: list[tuple] = []


def make(folder, seed, size=1):
    CALLS.append((seed, size))
    (folder / "made.txt").write_text(f"{seed} {size}")


def breaks(folder, seed, error=RuntimeError):
    (folder / "half.txt").write_text("half")
    raise error


def sized(size, folder, seed):
    make(folder, seed, size)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    CALLS.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dpo-recipes" / "prepared"


def fill(prepare, seed=0, said=None):
    recipe = Recipe(model="{prepared}/model", data=Data("{prepared}/pairs"), prepare=prepare, seed=seed)
    return hub.prepared(recipe, Console(file=said or io.StringIO(), width=400))


def test_without_a_function_nothing_is_made(cache):
    assert hub.prepared(Recipe(model="m", data=Data("d")), Console(file=io.StringIO())) is None
    assert not cache.exists()


def test_a_world_is_made_once_said_and_used_again(cache):
    first, second = io.StringIO(), io.StringIO()
    folder = fill(make, said=first)
    assert fill(make, said=second) == folder and folder.parent == cache
    assert CALLS == [(0, 1)] and (folder / "made.txt").read_text() == "0 1"
    assert f"Making what recipe needs, once, in {folder}" in first.getvalue() and second.getvalue() == ""


def test_a_world_that_has_lost_a_file_is_made_again_and_that_is_said(cache):
    folder = fill(make)
    (folder / "made.txt").unlink()
    said = io.StringIO()
    assert fill(make, said=said) == folder and (folder / "made.txt").exists()
    assert "needs again, as files have gone or been cut" in said.getvalue() and len(CALLS) == 2


def test_each_seed_function_and_argument_has_a_world_of_its_own(cache):
    variants = [
        (make, 0),
        (make, 1),
        (functools.partial(make, size=2), 0),
        (functools.partial(make, size=3), 0),
        (functools.partial(sized, 4), 0),
        (functools.partial(functools.partial(sized, 5)), 0),
    ]
    folders = [fill(*variant) for variant in variants]
    assert [(f / "made.txt").read_text() for f in folders] == ["0 1", "1 1", "0 2", "0 3", "0 4", "0 5"]
    assert len(set(folders)) == 6 and [fill(*variant) for variant in variants] == folders
    assert len(CALLS) == 6


def test_a_function_that_asks_for_a_model_is_told_of_one_that_lies_elsewhere(cache):
    def make_with(folder, seed, model=None, size=1):
        make(folder, seed, size=model or "its own")

    made = []
    for model in ("{prepared}/model", "mine", "yours"):
        recipe = Recipe(model=model, data=Data("{prepared}/pairs"), prepare=make_with, seed=0)
        made.append(hub.prepared(recipe, Console(file=io.StringIO())))
    assert [(folder / "made.txt").read_text() for folder in made] == ["0 its own", "0 mine", "0 yours"]
    assert len(set(made)) == 3
    assert hub.prepared(recipe, Console(file=io.StringIO())) == made[-1] and len(CALLS) == 3


def test_a_changed_source_makes_a_new_world(cache, tmp_path):
    text = (
        "from dpo_recipes import Data, Recipe\n"
        "def make(folder, seed):\n    (folder / 'a').write_text('{}')\n"
        "recipe = Recipe(model='{{prepared}}/m', data=Data('{{prepared}}/d'), prepare=make)\n"
    )
    seen = []
    for word in ("one", "longer", "one"):
        (tmp_path / "mine.py").write_text(text.format(word))
        folder = hub.prepared(load(tmp_path / "mine.py"), Console(file=io.StringIO()))
        seen.append((folder, (folder / "a").read_text()))
    assert [word for _, word in seen] == ["one", "longer", "one"]
    assert seen[0] == seen[2] and seen[0][0] != seen[1][0] and seen[0][0].name.startswith("mine-seed42-")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, RecipeError])
def test_a_function_that_fails_leaves_nothing_and_runs_again(cache, error):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else RecipeError):
            fill(functools.partial(breaks, error=error))
        assert os.listdir(cache) == []


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RecipeError, match="file/dpo-recipes/prepared/recipe-seed0.* cannot be made: .*XDG_CACHE_HOME"):
        fill(make)
    assert CALLS == []


def test_an_error_of_the_function_itself_is_not_blamed_on_the_cache_alone(cache):
    def reads(folder, seed):
        (folder / "nothing-here.json").read_text()

    with pytest.raises(RecipeError, match=r"cannot be made: .*No such file or directory: .*nothing-here.json"):
        fill(reads)
    assert os.listdir(cache) == []


def test_another_process_that_was_faster_is_no_error(cache):
    def overtaken(folder, seed):
        final = cache / folder.name[1:].split(".")[0]
        final.mkdir()
        (final / "made.txt").write_text("theirs")
        (folder / "made.txt").write_text("ours")

    folder = fill(overtaken)
    assert (folder / "made.txt").read_text() == "theirs" and os.listdir(cache) == [folder.name]


def test_the_users_own_cache_is_the_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fill(make).parent == tmp_path / ".cache" / "dpo-recipes" / "prepared"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("huggingface_hub.errors", "HFValidationError"),
        ("huggingface_hub.errors", "RevisionNotFoundError"),
        ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ],
)
def test_a_name_that_is_imported_from_huggingface_hub_is_there(module, name):
    assert hasattr(importlib.import_module(module), name)
