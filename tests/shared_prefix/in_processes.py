"""A short training, in as many processes as a launcher has started.

`python in_processes.py ENGINE FOLDER OUTPUT` is one of them: it trains the model of a folder under `ddp`, `zero2` or
`zero3`, and leaves what it saw in OUTPUT/RANK.json. Of FSDP2 there is `shard`: on a CPU the Trainer makes it DDP.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from making import make_pairs, recipe_for

from dpo_recipes import LoRA, QLoRA
from dpo_recipes.losses.pair_logps import PairLogps
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.models.tokenizer import load_tokenizer
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.dpo_arguments import dpo_arguments
from dpo_recipes.recipe.resolve import Device, resolve
from dpo_recipes.training.reference_cache import fingerprint
from dpo_recipes.training.trainer import RecipeTrainer, config

STAGES = {"zero2": 2, "zero3": 3}
WITH_ADAPTER = {"adapter": LoRA(r=4)}
OVER_4_BITS = {"adapter": QLoRA(r=4), "dtype": "auto"}
LOGGED = ["loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies", "entropy"]


def make_trainer(folder: Path, output: Path, engine: str, **changes) -> tuple[RecipeTrainer, list[str]]:
    """A trainer of eight pairs, four a step, and what it says."""
    recipe = recipe_for(
        folder,
        global_batch_size=4,
        micro_batch_size=1,
        max_length=96,
        learning_rate=0.05,
        trl={"max_steps": 3, "optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no"},
        **changes,
    )
    settings = resolve(recipe, Device())
    model = load_weights(recipe, settings, str(folder))
    options = {}
    if engine in STAGES:
        use_deepspeed_on_cpu()
        options["use_cpu"] = False  # with it Transformers would take DDP; DS_ACCELERATOR says the same to DeepSpeed
        options["accelerator_config"] = {"use_configured_state": True}
        options["deepspeed"] = {
            "zero_optimization": {"stage": STAGES[engine]},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "zero_allow_untested_optimizer": True,
        }
    said: list[str] = []
    trainer = RecipeTrainer(
        recipe=recipe,
        settings=settings,
        say=said.append,
        args=config(dpo_arguments(recipe, settings, str(output)) | options),
        model=model,
        train_dataset=Dataset.from_list(make_pairs(8)),
        eval_dataset=Dataset.from_list(make_pairs(5, seed=9)),  # which do not divide over two processes
        processing_class=load_tokenizer(recipe, str(folder)).tokenizer,
        peft_config=peft_config(recipe.adapter),
    )
    return trainer, said


def train(folder: Path, output: Path, engine: str, **changes) -> dict:
    """Three steps, and the held-out pairs after them."""
    trainer, said = make_trainer(folder, output, engine, **changes)
    trainer.train()
    metrics, pairs = trainer.held_out()
    steps = []
    for log in trainer.state.log_history:
        if "loss" in log:
            steps.append([log[name] for name in LOGGED])
    return {
        "steps": steps,
        "held_out": [metrics[name] for name in LOGGED if name in metrics],
        "margins": PairLogps.h.fget(pairs).tolist(),
        "said": said,
        "cache": trainer.reference_cache,
        "reference": trainer.fingerprint(),
        "processes": trainer.accelerator.num_processes,
        "sharded": trainer.is_deepspeed_enabled,
    }


def shard(folder: Path) -> dict:
    """Log-probabilities and gradients of a model whose layers FSDP2 divides over two processes, beside a whole one.

    The two processes have different pairs, of which only one shares its prompt: what is looked at in one of them must
    be looked at in both, as each forward of a layer waits for the parts that the other holds.
    """
    from reading_pairs import batch, draw, load, two
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    alike = batch(draw(30, 12, 7), draw(9, 20, 33, seed=1))
    unlike = batch(draw(12, 9, 9, seed=2))
    unlike["input_ids"][1, 0] += 1  # so that the rejected row begins with another token
    batches = [alike, unlike, batch(draw(41, 3, 2, seed=3))]

    whole, divided, said = two(load(folder), require=True)
    known_as = fingerprint(whole)
    mesh = init_device_mesh("cpu", (2,))
    for layer in divided.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(divided, mesh=mesh)
    assert fingerprint(divided) == known_as

    rank = torch.distributed.get_rank()
    differences = []
    for step in range(2):
        mine, other = batches[step + rank], batches[step + 1 - rank]
        theirs = whole(**mine).log_probs
        theirs.sum().backward()
        whole(**other).log_probs.sum().backward()
        ours = divided(**mine).log_probs
        ours.sum().backward()
        gradients = [[], []]
        for one, part in zip(whole.parameters(), divided.parameters(), strict=True):
            assert isinstance(part.grad, DTensor)
            gradients[0].append(one.grad.flatten() / 2)  # FSDP2 takes the mean of the processes
            gradients[1].append(part.grad.full_tensor().flatten())
        whole.zero_grad()
        divided.zero_grad()
        expected, found = (torch.cat(parts) for parts in gradients)
        logps = (ours - theirs).abs().max() / theirs.abs().max()
        differences.append([logps.item(), ((found - expected).norm() / expected.norm()).item()])
    return {"differences": differences, "said": said}


def use_deepspeed_on_cpu() -> None:
    """DeepSpeed between processes of a CPU, which neither accelerate nor Transformers knows how to start."""
    import deepspeed
    from accelerate import DistributedType, PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of a trainer before this one
    PartialState(cpu=True).distributed_type = DistributedType.DEEPSPEED
    # Sums through shared memory, which DeepSpeed would take minutes to compile; gloo has them.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def main(engine: str, folder: Path, output: Path) -> None:
    warnings.simplefilter("ignore")
    rank = os.environ["RANK"]
    os.environ["XDG_CACHE_HOME"] = str(output / "cache")
    result = {}
    for name, changes in {"first": {}, "again": {"beta": 0.2}}.items():
        result[name] = train(folder, output / rank, engine, pair_sharing="require", **changes)
    result["adapter"] = train(folder, output / rank, engine, pair_sharing="require", **WITH_ADAPTER)
    if engine in STAGES:
        result["off"] = train(folder, output / rank, engine, pair_sharing="off")
    if engine == "ddp":
        result["qlora"] = train(folder, output / rank, engine, pair_sharing="off", **OVER_4_BITS)
        result["fsdp2"] = shard(folder)
    (output / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
