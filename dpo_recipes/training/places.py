"""Whether what a recipe names can be had: made on this machine, in a folder, on the hub or in its cache.

Known within seconds: without this, a machine without a network spends a minute in retries and ends in a traceback.
"""

import functools
import hashlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console

from ..data.sources import files_of, is_path
from ..errors import RecipeError, nearest
from ..recipe.recipe import PREPARED, Recipe
from ..runs import environment, files
from ..runs.unreachable import status_of
from ..sentences import print_line

HUB_TIMEOUT = 8  # seconds for one question


class Place(NamedTuple):
    """One model or data set, as a recipe names it."""

    kind: Literal["model", "dataset"]
    key: str  # the recipe's field, for messages
    name: str
    revision: str | None


def require(models: list[str], revision: str | None, data: list[str], data_revision: str | None) -> None:
    """Return when every model and data set can be loaded; otherwise RecipeError with all that is missing.

    `models` are the policy's start and, where it is another one, the reference; `revision` is the first one's. Asks
    the hub once for each name that is not local. When it does not answer, the Hugging Face libraries are switched to
    their offline mode, so that cached files are used and nothing is retried.
    """
    remote = []
    for place in _places(models, revision, data, data_revision):
        if is_path(place.name) or os.path.exists(place.name):
            _require_local(place)
        else:
            remote.append(place)

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        _require_copies(remote, hub_state="is not asked, because HF_HUB_OFFLINE is set")
        return
    for place in remote:
        hub_state = _hub_failure(place)
        if hub_state is not None:  # which ends the questions
            constants.HF_HUB_OFFLINE = True
            os.environ["HF_HUB_OFFLINE"] = "1"
            _require_copies(remote, hub_state)
            return


def require_files(data: list[str]) -> None:
    """RecipeError for a file or folder of pairs that is not there; of what is on the hub `require` knows more."""
    for name in data:
        path = os.path.expanduser(name)
        if is_path(path):
            files_of(path, _data_key(data))  # which raises


def _data_key(data: list[str]) -> str:
    return "data.mix" if len(data) > 1 else "data.path"


def _places(models: list[str], revision: str | None, data: list[str], data_revision: str | None) -> list[Place]:
    policy, *reference = models
    places = [Place("model", "model", policy, revision)]
    places += [Place("model", "reference", name, None) for name in reference]
    places += [Place("dataset", _data_key(data), name, data_revision) for name in data]
    return places


def _require_local(place: Place) -> None:
    """RecipeError where a name of something on this machine leads nowhere."""
    if place.kind == "dataset":
        if is_path(place.name):
            files_of(place.name, place.key)  # which raises
        return

    path = os.path.expanduser(place.name)
    if os.path.isfile(path):
        parent = os.path.dirname(place.name) or "."
        raise RecipeError(
            f"{place.key}={place.name!r} is a file. A model is a folder, or a hub id such as org/name; the folder that "
            f"holds this file: {place.key}={parent}"
        )
    if is_path(place.name) and not os.path.isdir(path):
        raise RecipeError(
            f"{place.key}={place.name!r}: there is no such folder. A model is a folder, or a hub id such as org/name."
        )
    if place.revision is not None:
        raise RecipeError(f"revision={place.revision!r} does nothing: {place.name} is a folder here, not on the hub.")


def _hub_failure(place: Place) -> str | None:
    """In words, where the hub does not answer for a name; RecipeError where it answers that this cannot be had."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    try:
        HfApi().repo_info(place.name, repo_type=place.kind, revision=place.revision, timeout=HUB_TIMEOUT)
    except HFValidationError as error:
        raise RecipeError(
            f"{place.key}={place.name!r} is neither a folder or file here nor a hub id: {error}"
        ) from None
    except RevisionNotFoundError:
        raise RecipeError(f"{place.key}={place.name!r} has no revision {place.revision!r} on the hub.") from None
    except Exception as error:  # of whichever library the hub is asked through
        status = status_of(error)
        if status in (401, 403, 404):
            raise RecipeError(
                f"{place.key}={place.name!r} is not on the hub, or is private or gated. "
                "Check the spelling, or run `hf auth login`."
            ) from None
        if status is not None:
            return f"answers with HTTP status {status}"
        return "cannot be reached"  # whatever else the connection says: no route, a proxy, a time-out
    return None


def _require_copies(places: list[Place], hub_state: str) -> None:
    """RecipeError that names every place of which this machine has no copy, and how to do without the hub."""
    from huggingface_hub import constants

    missing = [place for place in places if not _has_copy(place)]
    if not missing:
        return

    names = [f"data set {place.name}" if place.kind == "dataset" else f"model {place.name}" for place in missing]
    local_names = dict.fromkeys(_local_name(place) for place in missing)  # each once, in order
    guesses = "".join(nearest(place.name, _names_at_hand(place.kind)) for place in missing)
    raise RecipeError(
        f"{constants.ENDPOINT} {hub_state}, and this machine has no copy of {' and '.join(names)}.{guesses} "
        f"Connect and run again, or name local ones: {' '.join(local_names)}"
    )


def _has_copy(place: Place) -> bool:
    """Whether the hub's cache has any snapshot or, of a data set, `datasets` has kept what it read from it."""
    from huggingface_hub import constants

    repository = f"{place.kind}s--{place.name.replace('/', '--')}"
    folders = [Path(constants.HF_HUB_CACHE, repository, "snapshots")]
    if place.kind == "dataset":
        kept = os.environ.get("HF_DATASETS_CACHE") or f"{constants.HF_HOME}/datasets"
        folders.append(Path(kept, place.name.replace("/", "___")))
    return any(any(folder.glob("*")) for folder in folders)


def _names_at_hand(kind: str) -> list[str]:
    """What a name may have been meant for: the repositories in the hub's cache, and the folders here."""
    from huggingface_hub import constants

    prefix = f"{kind}s--"
    cached = [folder.name.removeprefix(prefix) for folder in Path(constants.HF_HUB_CACHE).glob(f"{prefix}*")]
    folders = [folder.name for folder in Path().glob("*/")]
    return [name.replace("--", "/") for name in cached] + folders


def _local_name(place: Place) -> str:
    """The override by which a recipe would name a copy on this machine."""
    if place.kind == "model":
        return f"{place.key}=/path/to/folder"
    if place.key == "data.mix":
        return "data.mix={'/path/to/pairs.jsonl': 1.0, ...}"
    return f"{place.key}=/path/to/pairs.jsonl"


def prepared(recipe: Recipe, console: Console) -> Path | None:
    """The folder that `recipe.prepare` fills, made on first use; keyed by its source, arguments and seed.

    A function with a parameter `model` is given the recipe's where that lies elsewhere: its pairs may be made with it.

    None where the recipe prepares nothing; RecipeError where the function fails or the folder cannot be written.
    """
    if recipe.prepare is None:
        return None
    prepare = functools.partial(recipe.prepare, **_model_elsewhere(recipe))
    folder = environment.cache() / "prepared" / f"{recipe.name}-seed{recipe.seed}-{_key(prepare)}"
    if files.is_whole(folder):
        return folder

    if folder.is_dir():
        print_line(console, f"Making what {recipe.name} needs again, as files have gone or been cut, in {folder}")
    else:
        print_line(console, f"Making what {recipe.name} needs, once, in {folder}")
    try:
        files.make_once(folder, lambda temporary: prepare(temporary, recipe.seed))
    except Exception as error:  # the recipe's own function, or the disk
        if files.is_whole(folder):  # another process has made it meanwhile
            return folder
        in_words = isinstance(error, (OSError, RecipeError))
        reason = str(error) if in_words else f"{type(error).__name__}: {error}"
        raise RecipeError(f"{folder} cannot be made: {reason}. XDG_CACHE_HOME names another place.") from error
    return folder


def _model_elsewhere(recipe: Recipe) -> dict[str, str]:
    """What `prepare` is told beforehand: the recipe's model, if it asks for one and does not make it itself."""
    if recipe.prepare_asks_for_the_model and PREPARED not in recipe.model:
        return {"model": recipe.model}
    return {}


def _key(prepare: functools.partial[None]) -> str:
    """A hash of a function's source text, its name in there, and the arguments that it is given beforehand."""
    arguments = (prepare.args, sorted(prepare.keywords.items()))
    named = repr((prepare.func.__qualname__, arguments))
    return hashlib.sha256((_source(prepare.func) + named).encode()).hexdigest()[:12]


def _source(function: Callable[..., None]) -> str:
    """The text of the whole file, or of the notebook's cell: a function may call others in it."""
    try:
        lines, _ = inspect.findsource(function)
    except OSError:  # typed into an interpreter
        return function.__code__.co_code.hex()
    return "".join(lines)
