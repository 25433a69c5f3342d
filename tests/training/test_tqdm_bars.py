"""The bars of Transformers, datasets and the hub come out as stages of ours; what tells a user nothing is hidden."""

from __future__ import annotations

import http.server
import importlib
import io
import threading

import pytest
from making import make_pairs, write_jsonl
from rich.console import Console

from dpo_recipes.progress import _Clock
from dpo_recipes.training import tqdm_bars
from dpo_recipes.training.tqdm_bars import CLASSES, LibraryBar, shown_as_ours


@pytest.fixture
def shown(monkeypatch) -> list[tuple[str, float, int | None, str]]:
    """(words, done, total, unit) of each bar, whenever it moves."""
    seen = []

    class Noted(tqdm_bars.Stage):
        def show(self, done, total=None):
            super().show(done, total)
            seen.append((self.words, self.done, self.total, self.unit))

    monkeypatch.setattr(tqdm_bars, "Stage", Noted)
    return seen


CONSOLE = Console(file=io.StringIO())


def test_loading_weights_is_counted_in_tensors(tiny, shown):
    from transformers import AutoModelForCausalLM

    with shown_as_ours(CONSOLE):
        model = AutoModelForCausalLM.from_pretrained(tiny())
    words, done, total, unit = shown[-1]
    assert (words, unit) == ("Loading weights", "tensors")
    assert done == total == len({*map(id, model.parameters())})


@pytest.mark.parametrize("num_proc", [None, 2])
def test_rows_and_pairs_are_counted(shown, tmp_path, num_proc):
    import datasets

    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(12, seed=78))
    with shown_as_ours(CONSOLE):
        rows = datasets.load_dataset(
            "json", data_files=str(tmp_path / "pairs.jsonl"), split="train", cache_dir=tmp_path
        )
        rows.map(lambda row: row, desc="Tokenizing train pairs", num_proc=num_proc)
    assert shown[0][0] == "Reading the rows" and shown[0][3] == "rows"
    assert shown[-1] == ("Tokenizing train pairs", 12, 12, "pairs")


@pytest.fixture
def server(tmp_path):
    """The address of a file of 3 MB, on this machine."""
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/model.safetensors"
        serving.shutdown()


@pytest.mark.slow
def test_a_download_is_counted_in_bytes(shown, server, monkeypatch):
    from huggingface_hub.file_download import http_get

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    received = io.BytesIO()
    with shown_as_ours(CONSOLE):
        http_get(server, received, displayed_filename="model.safetensors")
    assert shown[-1] == ("Downloading model.safetensors", 3_000_000, 3_000_000, "B")
    assert len(received.getvalue()) == 3_000_000


@pytest.mark.parametrize(
    ("words", "unit", "ours"),
    [
        ("Reconstructing (incomplete total...)", "B", ("Downloading", "B")),
        ("Downloading bytes", "B", ("", "B")),
        ("Fetching 4 files", "it", ("", "it")),
        ("Generating train split", " examples", ("Reading the rows", "rows")),
        ("Reading pairs.jsonl (train) (num_proc=2)", " examples", ("Reading pairs.jsonl (train)", "rows")),
        ("Converting and de-quantizing GGUF tensors...", "it", ("Unpacking the weights", "tensors")),
        ("Writing model shards", "it", ("", "it")),
        ("Map", " examples", ("", " examples")),
    ],
)
def test_what_a_bar_is_called(words, unit, ours):
    assert tqdm_bars._in_our_words(words, unit) == ours


def test_the_total_of_several_downloads_may_grow(shown):
    """As huggingface_hub's snapshot does: its bar starts with a total of 0, and is never closed."""
    with shown_as_ours(CONSOLE):
        bar_class = importlib.import_module("huggingface_hub._snapshot_download").hf_tqdm
        bar = bar_class(desc="Reconstructing (incomplete total...)", total=0, initial=0, unit="B", unit_scale=True)
        bar.total += 10_000_000
        bar.refresh()
        bar.update(10_000_000)
        bar.set_description("Reconstruction complete")
        bar.set_postfix_str("1 MB/s", refresh=False)
        stage = bar.stage
        del bar
    assert shown[-1] == ("Downloading", 10_000_000, 10_000_000, "B")
    assert stage.console is CONSOLE and _Clock._running == []


def test_behind_it_the_libraries_have_their_own_bars_again():
    from transformers.utils import logging

    def classes() -> list[type]:
        return [getattr(importlib.import_module(name), attribute) for name, attribute in CLASSES.items()]

    before = classes()
    with pytest.raises(ValueError), shown_as_ours(CONSOLE):
        assert all(issubclass(bar, LibraryBar) for bar in classes())
        raise ValueError
    assert classes() == before and logging.set_tqdm_hook(None) is None


def test_nothing_is_written_by_the_libraries_themselves(tiny, capfd, tmp_path):
    """Neither with a terminal of ours nor in a log: tqdm writes to standard error, where nothing may come."""
    import datasets
    from transformers import AutoModelForCausalLM

    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, force_interactive=terminal)
        with shown_as_ours(console):
            AutoModelForCausalLM.from_pretrained(tiny())
            datasets.Dataset.from_list(make_pairs(3)).map(lambda row: row, desc="Tokenizing train pairs")
    assert capfd.readouterr() == ("", "")
