"""The engine that spreads a run over processes: which one a launcher has chosen, and what it cannot train.

Leans on TRL 1.16: `trl.deepspeed` is a configuration of DeepSpeed, which its Trainer does not complete. And on
accelerate 1.15: the variables in which its launcher hands a configuration to the processes that it starts, that it
starts one process where `--cpu` is given, and that its plugin holds the configuration that DeepSpeed is made with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..recipe.adapters import QLoRA
from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings, processes

DIVIDES_WEIGHTS = ("fsdp2", "zero3")
OF_GPUS = ("fsdp2", "zero2", "zero3")
TRUE = ("1", "true", "yes", "on", "y", "t")


def engine_here(recipe: Recipe) -> str:
    """What this process was started under: ddp, fsdp2, zero2 or zero3, or another name, which is none of ours."""
    if recipe.trl.get("deepspeed"):
        return f"zero{_stage(recipe.trl['deepspeed'])}"
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        stage = _stage(file) if file else os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return f"zero{stage}"
    if _is_set("ACCELERATE_USE_FSDP"):
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"
    return "ddp"


def refuse_engine(recipe: Recipe, engine: str, device: str) -> None:
    """RecipeError where several processes under an engine cannot train the recipe on this kind of device."""
    if engine not in ("ddp", *OF_GPUS):
        raise RecipeError(
            f"The launcher has chosen {engine}, with which nothing has been tried here. Choose one of "
            f"{', '.join(('ddp', *OF_GPUS))}, as in: dpo-recipes train {recipe.name} --launch ddp"
        )
    _refuse_device(recipe, engine, device)
    if engine.startswith("zero") and find_spec("deepspeed") is None:
        raise RecipeError(f"{engine} needs the package deepspeed, which is not installed: pip install deepspeed")
    refuse_what_it_cannot_train(recipe, engine)


def refuse_what_it_cannot_train(recipe: Recipe, engine: str) -> None:
    """RecipeError where several processes under an engine cannot train the recipe, on whatever machine."""
    if engine in DIVIDES_WEIGHTS and isinstance(recipe.adapter, QLoRA):
        raise RecipeError(f"{engine} cannot divide 4-bit weights: {_why_not_4_bits(engine)} Take ddp, or adapter=lora.")
    if engine in DIVIDES_WEIGHTS and recipe.trl.get("sync_ref_model"):
        raise RecipeError(
            f"trl.sync_ref_model moves a second copy of the weights towards the policy's, and {engine} gives each "
            "process another part of them. Take ddp or zero2, which leave weights whole."
        )
    if engine != "ddp" and recipe.reference is not None:
        raise RecipeError(
            f"Under {engine} the policy is first read when it trains, so that held-out numbers from before training "
            "are known only where it starts as its own reference. Leave reference= out, or take ddp."
        )
    if recipe.data.streaming:
        raise RecipeError(
            "A stream of pairs is read in one process, which counts what it drops: with several, none would know how "
            "many there were. Leave data.streaming out, or train in one process."
        )


def _refuse_device(recipe: Recipe, engine: str, device: str) -> None:
    """What an engine needs of a device. Left alone, accelerate would take another engine, and not say so."""
    if device == "mps":
        raise RecipeError("Apple's GPU is one device, and several processes need one each. Train in one process.")
    if device != "cpu" or engine == "ddp":
        return
    why = "accelerate would start it as DDP there, with nothing divided"
    if engine.startswith("zero"):
        why = "accelerate knows no way to start DeepSpeed there"
    raise RecipeError(
        f"{engine} needs GPUs, and this run is on a CPU: {why}. On a CPU: dpo-recipes train {recipe.name} --launch ddp "
        "--num-processes 2"
    )


def _why_not_4_bits(engine: str) -> str:
    if engine == "fsdp2":
        return (
            "it divides floating-point storage alone (bnb_4bit_quant_storage), and theirs is uint8, so that each GPU "
            "would hold them whole."
        )
    return "Transformers reads them whole into each process."


def refuse_other_precision(settings: Settings) -> None:
    """RecipeError where the launcher's precision is not the recipe's: TRL would compute in the launcher's."""
    of_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    of_recipe = settings.autocast or "no"
    if of_launcher in ("no", of_recipe):
        return
    raise RecipeError(
        f"The launcher's configuration says mixed_precision={of_launcher}, and the recipe computes with "
        f"{of_recipe if settings.autocast else 'none'}. Give the launcher --mixed_precision {of_recipe}, or the recipe "
        "another dtype."
    )


def divides_weights(trainer: Any) -> bool:
    """Whether each process holds a part of the trained weights."""
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    return bool(trainer.is_fsdp_enabled)


def reads_before_training(trainer: Any) -> bool:
    """Whether the policy can be read before it trains: DeepSpeed and FSDP make its parts when training begins."""
    return not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)


def clip_as_asked(trainer: Any) -> None:
    """Let DeepSpeed clip gradients at the recipe's max_grad_norm, where its configuration does not say at what.

    It clips in place of the Trainer, and left alone at 1.0 (DeepSpeed 0.19, `GRADIENT_CLIPPING_DEFAULT`): a recipe that
    does not clip, or at another norm, would train with other gradients than in one process, in silence.
    """
    configuration = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    configuration.setdefault("gradient_clipping", trainer.args.max_grad_norm)


def prepare_again(trainer: Any) -> None:
    """Let a policy that was read before training be prepared for training all the same, where there are several.

    Whatever has been prepared once is taken as it is. But for reading, it was not given the wrapper that shares
    gradients: each process would train a policy of its own, in silence (Transformers 5.23, `evaluation_loop`, and
    accelerate 1.15, `prepare_model`). To go when one of them tells the two apart.
    """
    if trainer.args.world_size > 1:
        trainer.model._is_accelerate_prepared = False


def refuse_training_apart(trainer: Any, model: Any) -> None:
    """RuntimeError where the model of a step does not share its gradients with those of the other processes."""
    if trainer.args.world_size == 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    from torch.nn.parallel import DistributedDataParallel

    if not isinstance(model, DistributedDataParallel):
        raise RuntimeError("Each process would train a policy of its own.")


def refuse_fsdp_on_a_cpu(recipe: Recipe, device: str) -> None:
    """RecipeError where one process was started under FSDP on a CPU: it would train without, and not say so."""
    engine = engine_here(recipe)
    if device == "cpu" and engine.startswith("fsdp"):
        raise RecipeError(
            f"{engine} needs GPUs, and this run is on a CPU: accelerate would train there without it. Use: dpo-recipes "
            f"train {recipe.name}"
        )


def refuse_lost_processes() -> None:
    """RecipeError where `accelerate launch` was asked for several processes and has started one, saying it nowhere.

    So it does with --cpu, with a configuration for several CPUs without mpirun, and where there is one GPU.
    """
    if processes() > 1 or "ACCELERATE_USE_CPU" not in os.environ:  # which it sets to True or False
        return
    import psutil

    parent = psutil.Process().parent()
    try:
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:  # gone, or another user's
        return
    asked = _processes_asked_for(words)
    if asked > 1:
        raise RecipeError(
            f"accelerate launch has started one process, and not the {asked} that were asked for. Use: "
            f"dpo-recipes train RECIPE --launch ddp --num-processes {asked}; or: torchrun --nproc_per_node {asked} "
            "-m dpo_recipes train RECIPE"
        )


def _processes_asked_for(words: list[str]) -> int:
    """How many processes the command line of accelerate's launcher, or the configuration that it names, asks for."""
    asked = _value_of(words, "num_processes")
    if asked.isdigit():
        return int(asked)
    file = _value_of(words, "config_file")
    if not file:
        return 1
    import yaml

    try:
        values = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # accelerate has read it; it may be gone by now
        return 1
    # Of other kinds they are started, or, as by TRL's own single_gpu.yaml with its 8 processes of no kind, not meant.
    if isinstance(values, dict) and values.get("distributed_type") == "MULTI_CPU":
        return int(values.get("num_processes") or 1)
    return 1


def _value_of(words: list[str], option: str) -> str:
    """The value of an option of a command line, written with - or _, behind a blank or =; empty without it."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.lstrip("-").replace("-", "_") == option and name.startswith("--"):
            return value if equals else (words[place + 1] if place + 1 < len(words) else "")
    return ""


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in TRUE


def _stage(configuration: Mapping[str, Any] | str) -> Any:
    """The stage of a configuration of DeepSpeed: a dict, JSON, or a file of it. DeepSpeed's own default is 0."""
    if isinstance(configuration, Mapping):
        values = configuration
    elif configuration.lstrip().startswith("{"):
        values = json.loads(configuration)
    else:
        values = json.loads(Path(configuration).expanduser().read_text(encoding="utf-8"))
    return values.get("zero_optimization", {}).get("stage", 0)
