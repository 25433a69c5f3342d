"""A hub that breaks off, refuses or is gone while a model or a data set comes: one message, and the next try works.

The hub is a stub on this machine, the client the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stub import Hub, served
from making import load_policy, make_pairs, recipe_for, write_jsonl, write_recipe

from dpo_recipes import Data, RecipeError
from dpo_recipes.data import sources
from dpo_recipes.models.tokenizer import load_tokenizer

WEIGHTS = "model.safetensors"
ROWS = "train.jsonl"
ALWAYS = 100
TIME_OUT = 0.3  # seconds, in place of 10


@pytest.fixture
def pairs_repository(tmp_path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    write_jsonl(folder / ROWS, make_pairs())
    return folder


@pytest.fixture
def hub(tiny, pairs_repository, tmp_path, monkeypatch):
    """A hub with a model and a data set, of which nothing is in the cache."""
    import datasets
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    with served(Hub(org__tiny=tiny(), org__pairs=pairs_repository)) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", TIME_OUT)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "rows")
        for module in (file_download, _http):
            monkeypatch.setattr(module.time, "sleep", lambda seconds: None)  # between its tries
        yield hub


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.incomplete") if path.is_file()]


def test_a_download_that_breaks_off_once_goes_on(hub):
    hub.drops[WEIGHTS] = 1
    load_policy("org/tiny")
    assert [asked for asked in hub.asked if WEIGHTS in asked and asked.startswith("GET")] != []


@pytest.mark.slow
@pytest.mark.parametrize(("way", "words"), [("drops", "peer closed"), ("hangs", "timed out")])
def test_weights_that_never_come_whole(hub, tmp_path, way, words):
    getattr(hub, way)[WEIGHTS] = ALWAYS
    with pytest.raises(RecipeError) as told:
        load_policy("org/tiny")
    said = str(told.value)
    assert f"the connection to {hub.url} broke ({words}" in said and "Connect, and run again" in said
    assert "pytorch_model.bin" not in said and not half_written(tmp_path / "cache")

    getattr(hub, way).clear()
    load_policy("org/tiny")


def test_a_server_that_has_no_time_is_told_by_its_status(hub):
    hub.file_status = 503
    with pytest.raises(RecipeError, match=f"No tokenizer .* {hub.url} answers with HTTP status 503. Connect, and run"):
        load_tokenizer(recipe_for("org/tiny"), "org/tiny")
    hub.file_status = 0
    load_tokenizer(recipe_for("org/tiny"), "org/tiny")


def test_files_that_are_gated_lead_to_the_login(hub):
    hub.file_status, hub.error_code = 403, "GatedRepo"
    with pytest.raises(RecipeError, match="gated repo.*hf auth login"):
        load_tokenizer(recipe_for("org/tiny"), "org/tiny")


@pytest.mark.slow
@pytest.mark.parametrize(("way", "words"), [("drops", "peer closed"), ("hangs", "timed out")])
def test_rows_that_never_come_whole(hub, way, words):
    data = Data("org/pairs")
    getattr(hub, way)[ROWS] = ALWAYS
    with pytest.raises(RecipeError, match=rf"org/pairs cannot be loaded: the connection to {hub.url} broke \({words}"):
        sources.hub(data, "org/pairs")
    getattr(hub, way).clear()
    assert len(sources.hub(data, "org/pairs")["train"]) == len(make_pairs())


def test_a_damaged_copy_of_a_data_set_says_what_to_remove(hub, tmp_path):
    sources.hub(Data("org/pairs"), "org/pairs")
    [rows] = (tmp_path / "rows").rglob("*.arrow")
    rows.write_bytes(rows.read_bytes()[:2000])
    with pytest.raises(RecipeError, match=f"is damaged or gone: .* rm -r {tmp_path / 'rows' / 'org___pairs'}"):
        sources.hub(Data("org/pairs"), "org/pairs")


@pytest.mark.slow
def test_on_the_command_line_it_is_one_message_and_the_same_command_works_later(hub, pairs_file, tmp_path):
    body = f"recipe = Recipe(model='org/tiny', data=Data({str(pairs_file)!r}, eval=0.25), adapter=LoRA(r=4),\n"
    recipe = write_recipe(tmp_path / "mine.py", body + "                max_length=112, trl={'max_steps': 1})\n")
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "dpo_recipes", "train", str(recipe), "--runs", str(tmp_path / "runs")]

    def train() -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, timeout=600)

    hub.drops[WEIGHTS] = ALWAYS
    done = train()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: No model could be loaded from 'org/tiny': the connection to" in done.stderr
    assert not any((tmp_path / "runs").glob("*")) and not half_written(tmp_path / "home")

    hub.drops.clear()
    done = train()
    assert done.returncode == 0, done.stderr
