"""An exported model on the hub, only when it is asked: in a new repository, private unless asked otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import RecipeError, UsageError
from ..models.model_folder import base_of_adapter
from ..progress import Stage
from ..sentences import print_line


def refuse_push(repository: str) -> None:
    """What can be known before the work: the name, the way to the hub, a token, and that nothing lies there.

    UsageError for a name that is none, RecipeError for all else.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    shown = f"--push {repository}"
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UsageError(
            f"{shown} is no name of a repository: org/name, of letters, digits, '-', '_' and '.', 96 at most."
        ) from None
    if "/" not in repository:
        raise UsageError(f"{shown} does not say whose it is: write --push YOUR_NAME/{repository}")
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1":
        raise RecipeError(f"{shown} sends the model to the hub, and HF_HUB_OFFLINE is set. Unset one of the two.")
    if not get_token():
        raise RecipeError(f"{shown} needs a token of the hub, and there is none: run `hf auth login`, or set HF_TOKEN.")
    try:
        is_there = HfApi().repo_exists(repository)
    except Exception as error:  # of whichever library the hub is asked through
        raise RecipeError(f"{shown}: {constants.ENDPOINT} does not answer as it should: {_reason(error)}") from error
    if is_there:
        raise UsageError(f"{shown}: there is such a repository already, and nothing is written over. Choose another.")


def push(folder: Path, repository: str, *, public: bool, console: Console) -> str:
    """Upload an exported folder into a new repository; returns its address. RecipeError where that fails.

    What is on this machine stays as it is in either case.
    """
    from huggingface_hub import HfApi

    base = base_of_adapter(str(folder))
    if base is not None and Path(base).exists():
        print_line(
            console, f"The adapter's base, {base}, is a folder of this machine: whoever loads it needs that too."
        )
    api: Any = HfApi()
    try:
        with Stage(console, f"Sending {folder} to the hub"):
            address = api.create_repo(repository, private=not public)
            api.upload_folder(
                repo_id=repository, folder_path=str(folder), commit_message="Upload a model of dpo-recipes"
            )
    except Exception as error:  # of whichever library the hub is asked through
        raise RecipeError(
            f"{folder} is whole, and could not be sent to {repository}: {_reason(error)} Try again: "
            f"hf upload {repository} {folder}{'' if public else ' --private'}"
        ) from error
    return str(address)


def _reason(error: Exception) -> str:
    """An answer of the hub, or of the way to it, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{(lines[0] if lines else type(error).__name__).rstrip('.')}."
