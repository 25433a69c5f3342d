"""The hash of our source changes with the modules that are named, and with nothing else."""

from __future__ import annotations

import hashlib
import importlib

import pytest

from dpo_recipes.runs.source_hash import source_hash

# The module, not the function of the same name.
module = importlib.import_module("dpo_recipes.runs.source_hash")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three modules, two of them in a folder, in the place of ours."""
    (tmp_path / "formats").mkdir()
    (tmp_path / "errors.py").write_text("errors")
    (tmp_path / "formats" / "readers.py").write_text("readers")
    (tmp_path / "formats" / "messages.py").write_text("messages")
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    source_hash.cache_clear()
    yield tmp_path
    source_hash.cache_clear()


def changed(file, *modules: str) -> bool:
    """Whether the hash of `modules` is another one after a change of `file`."""
    before = source_hash(*modules)
    file.write_text(file.read_text() + "# changed")
    source_hash.cache_clear()
    return source_hash(*modules) != before


def test_a_change_of_a_named_module_is_seen_and_no_other(package):
    assert changed(package / "formats" / "readers.py", "formats.readers")
    assert changed(package / "formats" / "readers.py", "errors", "formats.readers")
    assert changed(package / "errors.py", "errors", "formats.readers")
    assert not changed(package / "formats" / "messages.py", "formats.readers")
    assert not changed(package / "errors.py", "formats.readers")


def test_a_folder_stands_for_all_of_its_modules(package):
    assert changed(package / "formats" / "readers.py", "formats")
    assert changed(package / "formats" / "messages.py", "formats")
    assert not changed(package / "errors.py", "formats")

    before = source_hash("formats")
    (package / "formats" / "recognise.py").write_text("")
    source_hash.cache_clear()
    assert source_hash("formats") != before


def test_text_that_moves_from_one_module_to_the_next_is_a_change(package):
    (package / "formats" / "messages.py").write_text("ab")
    (package / "formats" / "readers.py").write_text("c")
    before = source_hash("formats")
    (package / "formats" / "messages.py").write_text("a")
    (package / "formats" / "readers.py").write_text("bc")
    source_hash.cache_clear()
    assert source_hash("formats") != before


@pytest.mark.parametrize("name", ["formats.reader", "nothing", "errors.readers", "formats.readers.py"])
def test_an_unknown_name_is_an_error(package, name):
    with pytest.raises(ModuleNotFoundError, match="has no module"):
        source_hash(name)


def test_it_reads_this_package():
    assert len(source_hash("errors")) == len(hashlib.sha256().hexdigest())
    assert source_hash("runs") != source_hash("runs.source_hash")
    assert source_hash("runs") == source_hash("runs")
