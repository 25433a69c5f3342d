"""Whether what a recipe names can be had: made on this machine, in a folder, on the hub or in its cache.

Known within seconds: without this, a machine without a network spends a minute in retries and ends in a traceback.
"""

import functools
import hashlib
import inspect
import os
from pathlib import Path

from rich.console import Console

from ..data.sources import files_of, is_path
from ..errors import RecipeError
from ..recipe.recipe import Recipe
from ..runs import environment, files


def require(models: list[str], revision: str | None, data: list[str], data_revision: str | None) -> None:
    """Return when every model and data set can be loaded; otherwise RecipeError with all that is missing.

    `revision` is the first model's. Asks the hub once for each name that is not local. When it does not answer, the
    Hugging Face libraries are switched to their offline mode, so that cached files are used and nothing is retried.
    """
    asked = [*zip(("model", "model"), ("model", "reference"), models, (revision, None), strict=False)]
    asked += [("dataset", "data.mix" if data[1:] else "data.path", path, data_revision) for path in data]
    remote = []
    for kind, key, name, rev in asked:
        if not is_path(name) and not os.path.exists(name):
            remote.append((kind, key, name, rev))
        elif kind == "dataset":
            if is_path(name):
                files_of(name)
        elif is_path(name) and not os.path.isdir(os.path.expanduser(name)):
            remedy = "A model is a folder, or a hub id such as org/name."
            raise RecipeError(f"{key}={name!r}: there is no such folder. {remedy}")
        elif rev is not None:
            raise RecipeError(f"revision={rev!r} does nothing: {name} is a folder here, not on the hub.")
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    why = "is not asked, because HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "cannot be reached"
    for kind, key, name, rev in remote:
        if constants.HF_HUB_OFFLINE:
            break
        try:
            HfApi().repo_info(name, repo_type=kind, revision=rev, timeout=8)
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
    made = os.environ.get("HF_DATASETS_CACHE") or f"{constants.HF_HOME}/datasets"  # where `datasets` keeps what it read
    missing, local = [], []
    for kind, key, name, _ in remote if constants.HF_HUB_OFFLINE else ():
        copies = [Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}", "snapshots")]
        copies += [Path(made, name.replace("/", "___"))] if kind == "dataset" else []
        if not any(any(folder.glob("*")) for folder in copies):
            missing.append(f"data set {name}" if kind == "dataset" else f"model {name}")
            place = "{'/path/to/pairs.jsonl': 1.0, ...}" if key == "data.mix" else "/path/to/pairs.jsonl"
            local.append(f"{key}={place}" if kind == "dataset" else f"{key}=/path/to/folder")
    if missing:
        raise RecipeError(
            f"{constants.ENDPOINT} {why}, and this machine has no copy of {' and '.join(missing)}. "
            f"Connect and run again, or name local ones: {' '.join(dict.fromkeys(local))}"
        )


def prepared(recipe: Recipe, console: Console) -> Path | None:
    """The folder that `recipe.prepare` fills, made on first use; keyed by its source, arguments and seed."""
    if recipe.prepare is None:
        return None
    make = functools.partial(recipe.prepare)  # of a partial function, its equal
    given = make.args, sorted(make.keywords.items())
    try:
        source = "".join(inspect.findsource(make.func)[0])  # of the whole file, or of the notebook's cell
    except OSError:
        source = make.func.__code__.co_code.hex()
    key = hashlib.sha256((source + repr((make.func.__qualname__, given))).encode()).hexdigest()[:12]
    folder = environment.cache() / "prepared" / f"{recipe.name}-seed{recipe.seed}-{key}"
    if not folder.is_dir():
        console.print(f"Making what {recipe.name} needs, once, in {folder}", highlight=False, soft_wrap=True)
        try:
            files.write_folder(folder, lambda where: make(where, recipe.seed))
        except Exception as error:  # the recipe's own function, or the disk
            if not folder.is_dir():  # another process may have made it meanwhile
                why = error if isinstance(error, (OSError, RecipeError)) else f"{type(error).__name__}: {error}"
                raise RecipeError(f"{folder} cannot be made: {why}. XDG_CACHE_HOME names another place.") from error
    return folder
