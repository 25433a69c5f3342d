"""A file of another program on its way to a recipe: what is set, what is still unread, what is not kept and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..recipe.adapters import LoRA, QLoRA
from ..recipe.data import Data
from ..recipe.recipe import Recipe
from ..recipe.trl_options import HARMFUL, INERT, OURS, REMOVED, options

# Today's names of options, where only the name has changed, or its unit has stayed.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # below 1 it is a share of all steps
    "no_cuda": "use_cpu",
}
NOT_SENT = "nothing is sent anywhere unless you ask for it here"
OWN_FOLDER = "every run has a folder of its own, with its log"
OF_SEVERAL_PROCESSES = "how several processes train together is said by train --launch"
# What is left behind by its name or its beginning -> why.
LEFT_BEHIND = {
    r"push_to_hub.*|hub_.*|report_to|wandb_.*|swanlab_.*|use_swanlab|run_name|project": NOT_SENT,
    r"output_dir|overwrite_output_dir|logging_dir|resume_from_checkpoint|save_only_model": OWN_FOLDER,
    r"ddp_.*|fsdp.*|deepspeed.*|accelerator_config|.*_parallel_size|dp_.*_size": OF_SEVERAL_PROCESSES,
    r"do_train|do_eval|do_predict|disable_tqdm": "the verbs say it: train, evaluate",
    r"plot_loss": "the curves are on the page of the run",
}


class Translation:
    """The values of a file, taken one by one."""

    def __init__(self, program: str, values: dict[str, Any]):
        """`program` wrote the file for itself; what the file leaves empty is not there."""
        self.program = program
        self.unread = {key: value for key, value in values.items() if value is not None}
        self.values: dict[str, Any] = {}  # of the recipe, by dotted key
        self.left_out: list[tuple[str, str]] = []  # what the file says, and why it is not kept
        self.notes: list[str] = []  # what is kept, in other words

    def take(self, key: str, default: Any = None) -> Any:
        return self.unread.pop(key, default)

    def move(self, key: str, ours: str) -> None:
        """Set a field of the recipe to the file's value, where it has one."""
        if key in self.unread:
            self.values[ours] = self.unread.pop(key)

    def leave(self, key: str, reason: str) -> None:
        """Do not keep what the file says, where it says anything but no."""
        if key not in self.unread:
            return
        value = self.unread.pop(key)
        if value not in (False, "", "none", [], {}):
            self.left_out.append((f"{key}: {_short(value)}", reason))

    def leave_all(self, keys_of: Mapping[str, tuple[str, ...]]) -> None:
        """Do not keep these keys; they stand behind the reason."""
        for reason, keys in keys_of.items():
            for key in keys:
                self.leave(key, reason)

    def batch(self, pairs: int, accumulation: int) -> None:
        """So many pairs at once and so many times a step, on each device."""
        self.values["global_batch_size"] = pairs * accumulation
        self.values["micro_batch_size"] = pairs
        self.notes.append(
            f"global_batch_size={pairs * accumulation} is {pairs} x {accumulation} of the file, on one device; where "
            "it was for several, multiply by their number."
        )

    def no_dropout(self, key: str) -> None:
        self.leave(key, "TRL disables all dropout; trl.disable_dropout=False beside adapter.dropout brings it back")

    def smoothing(self, key: str) -> None:
        """Labels that are smoothed in the sigmoid loss: conservative DPO."""
        smoothing = self.take(key)
        if not smoothing:
            return
        if self.values.get("loss", "sigmoid") == "sigmoid":
            self.values |= {"loss": "cdpo", "loss_args": {"label_smoothing": smoothing}}
            self.notes.append(f"{key}={smoothing} of the sigmoid loss is loss='cdpo' here: TRL ignores it since 0.29.")
        else:
            self.values["trl.label_smoothing"] = smoothing

    def options(self) -> None:
        """What is unread and an option of DPOConfig, by its name of today."""
        for key in list(self.unread):
            if key in RENAMED and RENAMED[key] in options():
                self.unread.setdefault(RENAMED[key], self.unread.pop(key))
                self.notes.append(f"{key} is trl.{RENAMED[key]} today.")
        for key in list(self.unread):
            reason = left_behind(key)
            if reason is not None:
                self.leave(key, reason)
            elif key in REMOVED:
                self.leave(key, REMOVED[key])
            elif key in INERT:
                self.leave(key, INERT[key])
            elif key in HARMFUL:
                self.leave(key, HARMFUL[key])
            elif key in OURS:
                self.leave(key, f"it is decided by {OURS[key]}")
            elif key in options():
                value = self.unread.pop(key)
                if value != options()[key].default:
                    self.values[f"trl.{key}"] = value

    def recipe(self) -> Recipe:
        """The recipe of what was kept; an option that would do nothing here is left out, with the reason.

        UsageError where what decides the result cannot be kept.
        """
        for key in list(self.unread):
            self.leave(key, f"nothing here knows this key of {self.program}")
        while True:
            try:
                return _recipe(self.values)
            except UsageError as error:
                option = re.match(r"trl\.(\w+).*(Delete it\.$|does nothing)", str(error))
                key = f"trl.{option[1]}" if option else ""
                if key not in self.values:
                    raise
                said = f"{key.removeprefix('trl.')}: {_short(self.values.pop(key))}"
                self.left_out.append((said, str(error).removesuffix(" Delete it.")))


def left_behind(key: str) -> str | None:
    """Why a key is of no use in any recipe; None where it may be."""
    for names, reason in LEFT_BEHIND.items():
        if re.fullmatch(names, key):
            return reason
    return None


def _recipe(values: dict[str, Any]) -> Recipe:
    fields: dict[str, dict[str, Any]] = {"": {}, "data": {}, "adapter": {}, "trl": {}}
    for key, value in values.items():
        owner, _, name = key.rpartition(".")
        fields[owner][name] = value
    recipe = fields[""]
    recipe["data"] = Data(**fields["data"])
    kind = recipe.pop("adapter", None)
    if kind is not None:
        recipe["adapter"] = {"lora": LoRA, "qlora": QLoRA}[kind](**fields["adapter"])
    if fields["trl"]:
        recipe["trl"] = fields["trl"]
    return Recipe(**recipe)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
