"""What is wrong with a folder that is to hold a model or an adapter, seen from its files and before a library is asked.

The standard library and the reader of safetensors' heads only, so that it is known at once. Of a model on the hub its
copy in the hub's cache is looked at, and only when it could not be loaded.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ..data.sources import is_path
from ..errors import RecipeError

FILES_NAMED = 8  # of a folder that holds no model, enough to recognise it by
LFS_POINTER = b"version https://git-lfs"
OLD_WEIGHTS = (".bin", ".pt", ".pth")
# Every tokenizer of Transformers has a file with one of these in its name.
TOKENIZER_WORDS = ("token", "vocab", "spiece", "sentencepiece", "tekken", "merges", ".tiktoken", ".model")
# The files of JSON that Transformers and PEFT read beside the weights; each holds an object.
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "preprocessor_config.json",
    "processor_config.json",
)
INDEX = "model.safetensors.index.json"
# How safetensors writes the types that a weight can be computed in as it stands.
FLOATS = ("F16", "BF16", "F32", "F64")


class Folder(NamedTuple):
    """A folder, and the field of a recipe that names it."""

    path: str
    field: str
    remedy: str = "Download or copy it again."  # where one of its files is damaged

    def __str__(self) -> str:
        return f"{self.field}={self.path!r}"


def refuse_model_folder(path: str, field: str, *, tokenizer: bool = True) -> None:
    """RecipeError where this folder cannot be loaded as a model, and what to do; `field` of the recipe names it."""
    folder = Folder(path, field)
    names = _readable_names(folder)
    if "adapter_config.json" in names and "config.json" not in names:
        _refuse_adapter(folder)

    if "config.json" not in names:
        raise RecipeError(f"{folder} holds no config.json, so it is no model folder. {_other_form(names)}")
    config = _json_object(folder, "config.json")
    if "model_type" not in config and "auto_map" not in config:  # which names code of its own
        raise RecipeError(
            f"{folder}: config.json has no model_type, so nothing says which architecture the weights are of. "
            "Take the config.json that was saved with them."
        )
    _refuse_weights(folder, names, config)
    if "generation_config.json" in names:  # which Transformers leaves out, unsaid, where it cannot read it
        _json_object(folder, "generation_config.json")
    if tokenizer and not any(word in name for name in names for word in TOKENIZER_WORDS):
        raise RecipeError(
            f"{folder} holds no tokenizer. Copy tokenizer.json and tokenizer_config.json of the model it was trained "
            f"from into it; {_contents(names)}"
        )


def refuse_adapter_folder(path: str, field: str) -> None:
    """RecipeError where this folder cannot be loaded as a LoRA adapter, and what to do."""
    folder = Folder(path, field)
    names = _readable_names(folder)
    if "adapter_config.json" not in names:
        what = "it is a whole model; set model= to it." if "config.json" in names else _contents(names)
        raise RecipeError(f"{folder} holds no LoRA adapter: adapter_config.json is missing; {what}")

    config = _json_object(folder, "adapter_config.json")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RecipeError(f"{folder} is a {kind} adapter, and only a LORA adapter is taken here.")
    if not any(name in names for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise RecipeError(
            f"{folder} has no weights: adapter_model.safetensors is missing beside adapter_config.json. {folder.remedy}"
        )
    if "adapter_model.safetensors" in names:
        _tensors(folder, "adapter_model.safetensors")


def refuse_model_of_run(folder: Path, *, is_adapter: bool) -> None:
    """RecipeError where the model folder of a run holds no model, or a damaged one."""
    names = os.listdir(folder) if folder.is_dir() else []
    if not names:
        raise RecipeError(f"{folder} holds no model: the run has not finished.")
    if is_adapter:
        refuse_adapter_folder(str(folder), "adapter")
    else:
        refuse_model_folder(str(folder), "model")
    refuse_damaged_files(str(folder), "model")  # its tokenizer too


def refuse_damaged_files(path: str, field: str) -> None:
    """RecipeError where a file of this folder is damaged by itself: what a library says of it may name no file."""
    _refuse_damaged_files(Folder(path, field))


def refuse_damaged_copy(snapshot: Path, field: str) -> None:
    """The same of what the hub's cache has of a model: `snapshot` is its folder, of one revision."""
    remedy = f"It is a copy in the cache of the hub: remove that, and run again: rm -r {snapshot.parent.parent}"
    _refuse_damaged_files(Folder(str(snapshot), field, remedy))


def _refuse_damaged_files(folder: Folder) -> None:
    names = _readable_names(folder)
    for name in JSON_FILES:
        if name in names:
            _json_object(folder, name)
    _refuse_missing_shards(folder, names)
    for name in weight_files(names):
        if name.endswith(".safetensors"):
            _tensors(folder, name)


def base_of_adapter(path: str) -> str | None:
    """The model that the adapter of this folder was made on; None where it is no folder of an adapter."""
    folder = Folder(os.path.expanduser(path), "adapter")
    if not os.path.isfile(os.path.join(folder.path, "adapter_config.json")):
        return None
    base = _json_object(folder, "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str):
        raise RecipeError(f"{folder}: adapter_config.json does not name the model that it was made on.")
    return base


def base_of_run(folder: Path) -> str:
    """The model that the adapter in a run's model folder was trained on; RecipeError where that folder has gone."""
    base = str(base_of_adapter(str(folder)))
    refuse_absent_base(str(folder), base, f"The adapter in {folder} was trained on")
    return base


def refuse_absent_base(adapter: str, base: str, whose: str) -> None:
    """RecipeError where an adapter's base is a folder that is there no more; `whose`: the words before its name."""
    if is_path(base) and not os.path.isdir(os.path.expanduser(base)):
        raise RecipeError(
            f"{whose} {base}, and there is no such folder. Where that model has moved, write its new place in "
            f"{os.path.join(adapter, 'adapter_config.json')}: base_model_name_or_path."
        )


def _readable_names(folder: Folder) -> list[str]:
    """The files of a folder; RecipeError where it is none, or where one of them has no data or may not be read."""
    if os.path.isfile(folder.path):
        parent = os.path.dirname(folder.path) or "."
        raise RecipeError(f"{folder} is a file. Name the folder that holds it: {folder.field}={parent}")
    if not os.path.isdir(folder.path):
        raise RecipeError(f"{folder}: there is no such folder.")
    try:
        names = sorted(os.listdir(folder.path))
    except OSError as error:
        raise RecipeError(f"{folder} cannot be read: {error.strerror}.") from None

    read = _files_read(names)
    for name in read:
        _refuse_what_is_no_file(folder, name)
        if not os.access(os.path.join(folder.path, name), os.R_OK):
            raise RecipeError(f"{folder}: {name} cannot be read: permission denied. Try: chmod -R u+rX {folder.path}")
    _refuse_lfs_pointers(folder, read)
    return names


def _refuse_what_is_no_file(folder: Folder, name: str) -> None:
    path = os.path.join(folder.path, name)
    if os.path.islink(path) and not os.path.exists(path):
        raise RecipeError(f"{folder}: {name} is a link to {os.readlink(path)}, which is not there. {folder.remedy}")
    if os.path.isdir(path):
        raise RecipeError(f"{folder}: {name} is a folder, and must be a file. {folder.remedy}")


def _files_read(names: list[str]) -> list[str]:
    """Those that loading may read; where there are safetensors, weights of other formats are left alone."""
    texts = [name for name in names if name.endswith((".json", ".txt", ".model", ".jinja"))]
    return texts + weight_files(names)


def weight_files(names: list[str]) -> list[str]:
    """Of a folder's files those of the weights, in the format that Transformers and PEFT prefer."""
    safetensors = [name for name in names if name.endswith(".safetensors")]
    for whole in ("model.safetensors", "adapter_model.safetensors"):
        if whole in safetensors:
            return [whole]
    shards = [name for name in safetensors if name.startswith("model-")]
    return shards or safetensors or [name for name in names if name.endswith(OLD_WEIGHTS)]


def _refuse_lfs_pointers(folder: Folder, names: list[str]) -> None:
    """Of a repository that was cloned without git-lfs, the large files are a few lines that point to them."""
    pointers = []
    for name in names:
        with open(os.path.join(folder.path, name), "rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                pointers.append(name)
    if pointers:
        first = pointers[0]
        if len(pointers) > 1:
            first += f" and {len(pointers) - 1} more"
        raise RecipeError(
            f"{folder}: {first} without data, a pointer of Git LFS only. Fetch the file itself: "
            f"git -C {folder.path} lfs pull"
        )


def _refuse_adapter(folder: Folder) -> None:
    base = _json_object(folder, "adapter_config.json").get("base_model_name_or_path") or "its base"
    if folder.field == "model":
        raise RecipeError(
            f"{folder} is an adapter, which a new one would replace. "
            f"To train it on, set model={base} adapter.continue_from={folder.path}"
        )
    raise RecipeError(
        f"{folder} is an adapter of {base}, not a whole model. Merge it with peft's merge_and_unload(), save that, and "
        f"set {folder.field}= to it."
    )


def _refuse_weights(folder: Folder, names: list[str], config: dict[str, Any]) -> None:
    files = weight_files(names)
    if not files:
        raise RecipeError(f"{folder} holds no weights. {_other_form(names)}")

    _refuse_missing_shards(folder, names)
    for name in files:
        if name.endswith(".safetensors"):
            tensors = _tensors(folder, name)
            if "quantization_config" not in config:
                _refuse_unscaled_numbers(folder, name, tensors)
        elif not os.path.getsize(os.path.join(folder.path, name)):
            raise RecipeError(f"{folder}: {name} is empty. {folder.remedy}")


def _refuse_missing_shards(folder: Folder, names: list[str]) -> None:
    """RecipeError where an index names files of weights that are not there, or such files have no index."""
    if "model.safetensors" in names:
        return
    if INDEX not in names:
        parts = [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
        if parts:
            raise RecipeError(f"{folder}: {INDEX} is missing, which says what is in {parts[0]}. {folder.remedy}")
        return

    weight_map = _json_object(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RecipeError(f"{folder}: {INDEX} has no weight_map. {folder.remedy}")
    shards = {str(shard) for shard in weight_map.values()}
    missing = sorted(shards.difference(names))
    if missing:
        raise RecipeError(
            f"{folder} lacks {len(missing)} of the {len(shards)} files of its weights: {', '.join(missing[:3])}. "
            f"{folder.remedy}"
        )


def _tensors(folder: Folder, name: str) -> dict[str, Any]:
    """Tensor -> dtype, shape and place, as the head of a safetensors file says; RecipeError where it is damaged."""
    path = Path(folder.path, name)
    size = path.stat().st_size
    if not size:
        raise RecipeError(f"{folder}: {name} is empty. {folder.remedy}")

    try:
        tensors, start_of_numbers = read_head(path)
        end_of_numbers = max([0, *(tensor["data_offsets"][1] for tensor in tensors.values())])
    except (ValueError, AttributeError, TypeError, KeyError):
        raise RecipeError(
            f"{folder}: {name} is damaged, or no safetensors file: its head cannot be read. {folder.remedy}"
        ) from None
    expected = start_of_numbers + end_of_numbers
    if size < expected:
        raise RecipeError(f"{folder}: {name} is cut short: {size:,} of {expected:,} bytes are there. {folder.remedy}")

    try:
        safe_open(path, framework="numpy")  # which reads the head, and no numbers
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise RecipeError(f"{folder}: {name} is damaged: {reason}. {folder.remedy}") from None
    return tensors


def read_head(file: Path) -> tuple[dict[str, Any], int]:
    """(tensor -> dtype, shape and place among the numbers; the byte at which these begin) of a safetensors file.

    The format: eight bytes with the length of the head, the head as JSON, and then the numbers. ValueError or
    AttributeError where the head is no such object.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        head = opened.read(length) if length < file.stat().st_size else b""
    tensors = json.loads(head)
    tensors.pop("__metadata__", None)
    return tensors, 8 + length


def _refuse_unscaled_numbers(folder: Folder, name: str, tensors: dict[str, Any]) -> None:
    """8-bit and 4-bit weights mean nothing without their scales, and would be read as they stand."""
    for tensor, entry in tensors.items():
        if tensor.endswith(".weight") and entry["dtype"] not in FLOATS:
            raise RecipeError(
                f"{folder}: {tensor} in {name} is of type {entry['dtype']}, and config.json has no quantization_config "
                "to say how it is scaled. Take the config.json that was saved with it, or the 16-bit model."
            )


def _json_object(folder: Folder, name: str) -> dict[str, Any]:
    try:
        value = json.loads(Path(folder.path, name).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise RecipeError(f"{folder}: {name} is no valid JSON: {error}. {folder.remedy}") from None
    if not isinstance(value, dict):
        raise RecipeError(
            f"{folder}: {name} must hold a JSON object, and holds {type(value).__name__}. {folder.remedy}"
        )
    return value


def _other_form(names: list[str]) -> str:
    """What the folder is instead, as far as its names tell."""
    if any(name.endswith(".gguf") for name in names):
        return "GGUF files are for inference (llama.cpp, Ollama): take the original model, in safetensors."
    checkpoints = [name for name in names if name.startswith("checkpoint-")]
    if checkpoints:
        return f"It holds checkpoints of a run: name one of them, such as {checkpoints[-1]}."
    if "recipe.json" in names and "model" in names:
        return "It is a run folder: name the folder model in it."
    return f"A model folder has config.json, model.safetensors and tokenizer files; {_contents(names)}"


def _contents(names: list[str]) -> str:
    return f"it holds {first_names(names)}."


def first_names(names: list[str]) -> str:
    """Enough names of a folder's files to recognise it by."""
    return ", ".join(names[:FILES_NAMED]) or "nothing"
