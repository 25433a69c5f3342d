"""A cache of its own, no hub and no GPU for every test; what the tests are made of is in making.py."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from another_device import build
from making import (
    SHORT_ANSWER,
    make_adapter,
    make_image_pairs,
    make_model,
    make_pairs,
    make_trainer,
    make_vision_model,
    write_jsonl,
)

# Before anything imports a Hugging Face library: a cache of our own, no hub, no GPU.
_SCRATCH = tempfile.TemporaryDirectory(prefix="dpo-recipes-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] = _SCRATCH.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads that wait for each other cost more than they bring
os.environ.setdefault("COLUMNS", "160")  # rich wraps at the terminal's width

# A shell ignores Ctrl-C in what it runs behind `&`, nohup ignores the end of a terminal, and programs inherit that: the
# tests that send such signals would wait.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
if hasattr(signal, "SIGHUP"):  # Windows has none
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's commands first: they take a minute or two in one process, while others do the rest."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


def pytest_collection_finish() -> None:
    """Leave what the libraries and the tests are made of to no collection: each training asks for one of its own."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[..., Path]:
    """tiny(model_type="llama", **config) -> a model folder, made once for each set of arguments."""
    made: dict[str, Path] = {}

    def build(model_type: str = "llama", **changes) -> Path:
        key = repr((model_type, sorted(changes.items())))
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(model_type), model_type, **changes)
        return made[key]

    return build


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory) -> Callable[..., Path]:
    """tiny_vision(model_type="idefics3") -> the folder of a vision-language model, made once for each."""
    made: dict[str, Path] = {}

    def build(model_type: str = "idefics3") -> Path:
        if model_type not in made:
            made[model_type] = make_vision_model(tmp_path_factory.mktemp(model_type), model_type)
        return made[model_type]

    return build


@pytest.fixture(scope="session")
def image_pairs_file(tmp_path_factory) -> Path:
    """24 explicit pairs with an image each, as a jsonl file."""
    return make_image_pairs(tmp_path_factory.mktemp("image_pairs"))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> Path:
    """24 explicit pairs as a jsonl file."""
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", make_pairs())


@pytest.fixture(scope="session")
def start_adapter(tiny, tmp_path_factory) -> Path:
    """A saved LoRA adapter of the tiny model that already changes it."""
    return make_adapter(tmp_path_factory.mktemp("adapter"), tiny())


@pytest.fixture(scope="session")
def another_device(tmp_path_factory) -> str:
    """The library of a device that is not the CPU (another_device.py), which all processes of the tests build once."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return str(build(folder))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of its own, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short_answers(monkeypatch) -> None:
    """Tiny models hardly end an answer, and the tokens that one may have take half of the time of a short run."""
    monkeypatch.setattr("dpo_recipes.evaluation.rehearsal.MAX_NEW_TOKENS", SHORT_ANSWER)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that the client of an endpoint would have waited."""
    from dpo_recipes.models import endpoint

    waited: list[float] = []
    monkeypatch.setattr(endpoint, "_pause", lambda stopped, seconds: waited.append(seconds))
    return waited


@pytest.fixture
def made_up_plan(monkeypatch) -> None:
    """`check` plans memory on fake tensors, which takes most of its time: for tests of what it says of all else."""
    from dpo_recipes.planning import memory

    parts = dict.fromkeys(memory.PARTS, 0) | {"weights": 10**9}
    plan = memory.Plan(trainable=1, total=1, moment="step", peak=10**9, **parts)

    def plan_for(*_, **__):
        return plan

    monkeypatch.setattr(memory, "plan_for", plan_for)


@pytest.fixture
def trainer_with_reference(tiny, start_adapter, tmp_path) -> Callable[[str], tuple]:
    """trainer_with_reference(kind) -> (trainer, its Reference, a reference loaded freshly from disk)."""
    return lambda kind: make_trainer(kind, tiny(), tiny(seed=1), start_adapter, tmp_path)
