"""Whether what a recipe names can be had: made on this machine, in a folder, on the hub or in its cache.

Known within seconds: without this, a machine without a network spends a minute in retries and ends in a traceback.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from . import rundir
from .errors import RecipeError
from .recipe import Recipe
from .sources import files_of, is_path


def require(models: list[str], revision: str | None, data: str, data_revision: str | None) -> None:
    """Return when every model and the data set can be loaded; otherwise RecipeError with all that is missing.

    `revision` is the first model's. Asks the hub once for each name that is not local. When it does not answer, the
    Hugging Face libraries are switched to their offline mode, so that cached files are used and nothing is retried.
    """
    for key, model in zip(("model", "reference"), models, strict=False):
        if is_path(model) and not os.path.isdir(os.path.expanduser(model)):
            remedy = "A model is a folder, or a hub id such as org/name."
            raise RecipeError(f"{key}={model!r}: there is no such folder. {remedy}")
    if revision is not None and (is_path(models[0]) or os.path.exists(models[0])):
        raise RecipeError(f"revision={revision!r} does nothing: {models[0]} is a folder here, not on the hub.")
    if is_path(data):
        files_of(data)
    asked = [("model", m, None if i else revision) for i, m in enumerate(models)] + [("dataset", data, data_revision)]
    remote = [(kind, name, rev) for kind, name, rev in asked if not is_path(name) and not os.path.exists(name)]
    if not remote:
        return
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    api = huggingface_hub.HfApi()
    why = "is not asked, because HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "cannot be reached"
    for kind, name, rev in remote:
        if constants.HF_HUB_OFFLINE:
            break
        key = "data.path" if kind == "dataset" else "model" if name == models[0] else "reference"
        try:
            (api.dataset_info if kind == "dataset" else api.model_info)(name, revision=rev, timeout=8)
        except HFValidationError as error:
            raise RecipeError(f"{key}={name!r} is neither a folder or file here nor a hub id: {error}") from None
        except RevisionNotFoundError:
            raise RecipeError(f"{key}={name!r} has no revision {rev!r} on the hub.") from None
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
                remedy = "Check the spelling, or run `hf auth login`."
                raise RecipeError(f"{key}={name!r} is not on the hub, or is private or gated. {remedy}") from None
            # Whatever else the connection says: no route, a proxy, a time-out, a server error.
            constants.HF_HUB_OFFLINE = True
            os.environ["HF_HUB_OFFLINE"] = "1"
    missing = [(kind, name) for kind, name, _ in remote if constants.HF_HUB_OFFLINE and not _cached(kind, name)]
    if missing:
        words = {"model": ("model", "model=/path/to/folder"), "dataset": ("data set", "data.path=/path/to/pairs.jsonl")}
        raise RecipeError(
            f"{constants.ENDPOINT} {why}, and this machine has no copy of "
            f"{' and '.join(f'{words[kind][0]} {name}' for kind, name in missing)}. "
            f"Connect and run again, or name local ones: {' '.join(words[kind][1] for kind, _ in missing)}"
        )


def _cached(kind: str, name: str) -> bool:
    from huggingface_hub import constants

    folders = [Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"]
    if kind == "dataset":
        prepared = os.environ.get("HF_DATASETS_CACHE") or str(Path(constants.HF_HOME) / "datasets")
        folders.append(Path(prepared) / name.replace("/", "___"))
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def prepared(recipe: Recipe, console: Console) -> Path | None:
    """The folder that `recipe.prepare` fills, made on first use; keyed by its source, arguments and seed."""
    if recipe.prepare is None:
        return None
    make: Any = recipe.prepare
    function, given = make, None
    if isinstance(make, functools.partial):
        function, given = make.func, (make.args, sorted(make.keywords.items()))
    try:
        source = "".join(inspect.findsource(function)[0])  # of the whole file, or of the notebook's cell
    except OSError:
        source = function.__code__.co_code.hex()
    key = hashlib.sha256((source + repr((function.__qualname__, given))).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpo-recipes" / "prepared"
    folder = cache / f"{recipe.name}-seed{recipe.seed}-{key}"
    if not folder.is_dir():
        console.print(f"Making what {recipe.name} needs, once, in {folder}", highlight=False, soft_wrap=True)
        try:
            rundir.write_folder(folder, lambda where: make(where, recipe.seed))
        except Exception as error:  # the recipe's own function, or the disk
            if not folder.is_dir():  # another process may have made it meanwhile
                why = error if isinstance(error, (OSError, RecipeError)) else f"{type(error).__name__}: {error}"
                raise RecipeError(f"{folder} cannot be made: {why}. XDG_CACHE_HOME names another place.") from error
    return folder
