"""`--push`: only when it is asked, into a new private repository, and one line for whatever is in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import quiet
from rich.console import Console

from dpo_recipes import RecipeError, export
from dpo_recipes.errors import UsageError
from dpo_recipes.exports import push as pushing


class Hub:
    """A hub that keeps what it is sent."""

    def __init__(self):
        self.repositories: dict[str, bool] = {"org/taken": False}  # name -> whether it is private
        self.sent: dict[str, set[str]] = {}
        self.broken: Exception | None = None

    def repo_exists(self, name: str) -> bool:
        return name in self.repositories

    def create_repo(self, name: str, *, private: bool) -> str:
        self.repositories[name] = private
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        if self.broken:
            raise self.broken
        self.sent[repo_id] = {path.name for path in Path(folder_path).iterdir()}


@pytest.fixture
def hub(monkeypatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return hub


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").touch()
    return tmp_path / "merged"


@pytest.mark.parametrize("public", [False, True])
def test_it_goes_to_a_new_repository_private_unless_asked(public, hub, folder):
    pushing.refuse_push("org/mine")
    assert pushing.push(folder, "org/mine", public=public, console=quiet()) == "https://hub/org/mine"
    assert hub.repositories["org/mine"] is not public and hub.sent == {"org/mine": {"config.json"}}


def test_what_is_in_the_way_is_said_before_the_work(hub, monkeypatch):
    for name in ("a b/c", "org/name/more", "org/..x"):
        with pytest.raises(UsageError, match="is no name of a repository"):
            pushing.refuse_push(name)
    with pytest.raises(UsageError, match="write --push YOUR_NAME/mine"):
        pushing.refuse_push("mine")
    with pytest.raises(UsageError, match="there is such a repository already"):
        pushing.refuse_push("org/taken")
    monkeypatch.setattr(hub, "repo_exists", lambda name: 1 / 0)
    with pytest.raises(RecipeError, match="does not answer as it should: division by zero."):
        pushing.refuse_push("org/mine")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RecipeError, match="needs a token of the hub, and there is none"):
        pushing.refuse_push("org/mine")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE is set"):
        pushing.refuse_push("org/mine")
    assert not hub.sent


def test_what_could_not_be_sent_is_still_here(hub, folder):
    hub.broken = OSError("the connection was closed\nand more")
    words = "is whole, and could not be sent to org/mine: the connection was closed. Try again: hf upload org/mine .* "
    with pytest.raises(RecipeError, match=f"{words}--private"):
        pushing.push(folder, "org/mine", public=False, console=quiet())
    assert (folder / "config.json").exists()


def test_an_adapter_of_a_folder_here_is_told_to_need_it(hub, folder, tmp_path):
    (folder / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path}"}}')
    with (tmp_path / "log").open("w") as log:
        pushing.push(folder, "org/mine", public=False, console=Console(file=log, width=300))
    assert f"The adapter's base, {tmp_path}, is a folder of this machine" in (tmp_path / "log").read_text()


def test_options_that_would_do_nothing_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--public says who sees what --push sends"):
        export("run", merged=True, public=True, out=tmp_path / "x")
    with pytest.raises(UsageError, match="--push sends a model, and --trl writes a script"):
        export("run", trl=True, push="org/mine", out=tmp_path / "x")
