"""What one of several devices holds, by the engine that spreads a run over them: the plan for one device, divided.

The formulae are what the engines' own documentation and sources say of their defaults. They have not been compared with
runs on several GPUs.

Leans on torch 2.13: DDP's buckets, when FSDP2 gathers and reduces, and that it keeps gradients that wait in the type in
which they are reduced. Leans on accelerate 1.15: into which units `fsdp2_prepare_model` divides a model, that it leaves
4-bit weights out, and keeps 32 bits of what trains where a run computes in 16; and that by its policy weights are then
gathered, and gradients reduced, in these 16. Leans on Transformers 5.23: that it tells accelerate the precision of a
run, that micro-batches before the last of a step are not reduced, except by DeepSpeed, and that ZeRO-3 does not divide
4-bit weights while they are read. Leans on the defaults of DeepSpeed's configuration, as accelerate leaves them, and
that it computes in 16 bits without autocast, with 32 bits of what trains beside the optimizer's states.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError, nearest
from ..recipe.adapters import QLoRA
from ..recipe.recipe import Recipe
from ..recipe.resolve import Device, resolve
from .needs import bytes_of_states

if TYPE_CHECKING:
    from ..training.session import Session
    from .memory import Plan
    from .pair_lengths import PairLength

STATES = ("gradients", "optimizer")
MODEL = ("weights", "adapter", "reference")


class Engine(NamedTuple):
    """How a run is spread over processes, each with a device of its own."""

    words: str
    divides: tuple[str, ...]  # parts of a plan that the devices share; all others each device holds whole


ENGINES = {
    "ddp": Engine("each device holds everything, and buckets for its gradients", ()),
    "fsdp2": Engine(
        "weights, gradients and optimizer states are divided; each layer is gathered for use", MODEL + STATES
    ),
    "zero2": Engine("gradients and optimizer states are divided; weights are whole", STATES),
    "zero3": Engine("weights, gradients and optimizer states are divided; layers are gathered for use", MODEL + STATES),
}

# DeepSpeed's defaults, in numbers: `reduce_bucket_size`, a buffer that is made whole whatever the model's size, and
# `stage3_max_live_parameters`, up to which ZeRO-3 keeps what it has gathered.
BUCKET_NUMBERS = 500_000_000
LIVE_NUMBERS = 1_000_000_000


# Bytes of a number in 16 bits, and of what an engine keeps of each number that trains while it computes in these.
OF_16_BITS = 2
OF_MASTERS = 4


class Launch(NamedTuple):
    """So many processes under an engine."""

    num_processes: int
    engine: str


class Sizes(NamedTuple):
    """Bytes of a model that count where it is spread over devices."""

    whole: int  # all weights, with the adapter
    number: int  # one weight, of the type that most have
    trained: int  # what trains, and so its gradients
    trained_number: int  # one number of it
    unit: int  # the largest of the units that FSDP2 gathers: a layer, or the embeddings
    unit_trained: int  # the most of a unit that trains
    tail: int  # last norm and head, which FSDP2 keeps gathered
    undivided: int  # what FSDP2 leaves whole: 4-bit weights, and buffers
    undivided_reference: int = 0  # the same of a second model


def launch(num_processes: int | None, engine: str | None) -> Launch | None:
    """How a run is to be spread; None for one process. UsageError where the two do not go together."""
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"--engine {engine} is not one of {', '.join(ENGINES)}.{nearest(engine, ENGINES)}")
    if num_processes is not None and num_processes < 1:
        raise UsageError(f"--num-processes {num_processes} is no number of processes: 1, 2, 4 and so on.")

    if engine is not None and (num_processes is None or num_processes == 1):
        count = "" if num_processes is None else " and not 1"
        raise UsageError(
            f"--engine {engine} spreads a run over several processes: say how many{count}, as in "
            f"--num-processes 4 --engine {engine}. One process needs no engine."
        )
    if num_processes is None or num_processes == 1:
        return None
    return Launch(num_processes, engine or "ddp")


def refuse_engine(recipe: Recipe, engine: str) -> None:
    """UsageError where an engine does nothing for the recipe's weights."""
    if engine == "zero3" and isinstance(recipe.adapter, QLoRA):
        raise UsageError(
            "--engine zero3 cannot divide 4-bit weights: Transformers reads them whole into every device. It can be "
            "zero2, which leaves weights whole; or ddp; or zero3 with adapter=lora."
        )


def notes(recipe: Recipe, engine: str, accumulation: int) -> list[str]:
    """What of an engine's promise does not hold for a recipe."""
    sentences = []
    if engine == "fsdp2" and isinstance(recipe.adapter, QLoRA):
        sentences.append(
            "4-bit weights stay whole on every device: FSDP2 divides floating-point storage alone "
            "(bnb_4bit_quant_storage), and theirs is uint8."
        )
    if engine == "fsdp2" and accumulation > 1:
        sentences.append(
            f"Gradients stay whole over {accumulation} micro-batches, as they are reduced at the last one alone."
        )
    return sentences


def divided_by(launch: Launch, accumulation: int) -> dict[str, int]:
    """Part -> over how many devices it is divided. `accumulation`: forwards per optimiser step.

    Micro-batches before the last one run under `no_sync`, where FSDP2 keeps the gradients whole
    (`set_requires_gradient_sync(False)`); DeepSpeed reduces after each.
    """
    devices = dict.fromkeys(ENGINES[launch.engine].divides, launch.num_processes)
    if launch.engine == "fsdp2" and accumulation > 1:
        del devices["gradients"]
    return devices


def on_a_device(plan: Plan, launch: Launch, sizes: Sizes, accumulation: int = 1) -> Plan:
    """What one of several devices holds, of the plan for one device with the same micro-batch.

    A part that is divided counts as ceil(bytes / N); activations, head and what the allocator keeps belong to the
    device's own micro-batch and stay. Of the model, what the engine cannot divide stays as well. Of one device it is
    the plan itself.
    """
    if launch.num_processes == 1:
        return plan
    devices = divided_by(launch, accumulation)
    undivided = {"weights": sizes.undivided, "reference": sizes.undivided_reference}
    parts: dict[str, Any] = {}
    for part, count in devices.items():
        whole = getattr(plan, part)
        stays = min(undivided.get(part, 0), whole)
        parts[part] = stays + math.ceil((whole - stays) / count)
    parts["gathered"] = _gathered(launch.engine, sizes)
    parts["buckets"] = _buckets(launch.engine, sizes)

    before = sum(getattr(plan, part) for part in parts)
    return dataclasses.replace(plan, peak=plan.peak - before + sum(parts.values()), **parts)


def _gathered(engine: str, sizes: Sizes) -> int:
    """Bytes of weights that a device holds beside its own share, while they are in use.

    FSDP2 (torch.distributed.fsdp.fully_shard): the unit in use and the next one, which is prefetched, and the last norm
    and the head, which accelerate does not let go between forward and backward. ZeRO-3: as much as
    `stage3_max_live_parameters` allows, if the model has it, and two units at least.
    """
    if engine == "fsdp2":
        return min(sizes.whole, sizes.tail + 2 * sizes.unit)
    if engine == "zero3":
        return min(sizes.whole, max(LIVE_NUMBERS * sizes.number, 2 * sizes.unit))
    return 0


def _buckets(engine: str, sizes: Sizes) -> int:
    """Bytes of the buffers in which gradients travel.

    DDP: a copy of all gradients, as `gradient_as_bucket_view` is off (torch.nn.parallel.DistributedDataParallel).
    FSDP2: the gradients of the unit that is reduced, whole, and of the one before it. ZeRO: `reduce_bucket_size`
    numbers, with `contiguous_gradients`, which is on.
    """
    if engine == "ddp":
        return sizes.trained
    if engine == "fsdp2":
        return 2 * sizes.unit_trained
    return BUCKET_NUMBERS * sizes.trained_number


# ------------------------------------------------------------------------------------------------------- for a recipe


def plan_on_engine(session: Session, device: Device, pairs: list[PairLength], recipe: Recipe, engine: str) -> Plan:
    """What one of `device.processes` devices holds, at its own worst moment."""
    refuse_engine(recipe, engine)
    return of_engine(plan_on_paper(session, device, pairs, recipe, engine), recipe, Launch(device.processes, engine))


class OnPaper(NamedTuple):
    """The plan of a run with nothing divided yet, and what dividing it takes."""

    plan: Plan
    sizes: Sizes
    accumulation: int  # forwards per optimiser step
    has_masters: bool  # whether it is in 16 bits, of which the engine keeps 32


def plan_on_paper(session: Session, device: Device, pairs: list[PairLength], recipe: Recipe, engine: str) -> OnPaper:
    """The plan that `of_engine` divides."""
    from .memory import plan_for, skeletons  # which bring torch

    settings = resolve(recipe, device)
    has_masters = engine != "ddp" and settings.autocast is not None and recipe.adapter is None
    devices = divided_by(Launch(device.processes, engine), settings.accumulation)
    if has_masters and settings.autocast is not None:
        # Of weights in 32 bits autocast would hold copies in 16; these engines gather 16 bits, and need none.
        settings = dataclasses.replace(settings, weights={"bf16": "bfloat16", "fp16": "float16"}[settings.autocast])
        if "gradients" in devices:
            devices["gradients"] = max(1, devices["gradients"] // 2)  # of 32 bits, whose count finds the worst moment
    models = skeletons(session, recipe, settings)
    gathers_by_module = engine == "zero3"
    plan = plan_for(session, device, pairs, recipe, devices, models, settings, reads_weights=not gathers_by_module)
    return OnPaper(plan, sizes_of(*models), settings.accumulation, has_masters)


def of_engine(paper: OnPaper, recipe: Recipe, spread: Launch) -> Plan:
    """What one of the devices holds of it."""
    plan = paper.plan
    if paper.has_masters:
        optimizer = str(recipe.trl.get("optim", "adamw"))
        plan = with_masters(plan, spread.engine, bytes_of_states(optimizer, OF_MASTERS), paper.accumulation)
    return on_a_device(plan, spread, paper.sizes, paper.accumulation)


def with_masters(plan: Plan, engine: str, bytes_of_a_state: int, accumulation: int = 1) -> Plan:
    """The plan of a model in 16 bits, of which an engine keeps 32 bits beside them, or in their place.

    FSDP2 divides weights and gradients of 32 bits; while gradients wait for the last micro-batch of a step, they have
    16. ZeRO divides and gathers 16 bits, and keeps 32 beside the optimizer's states, whose `bytes_of_a_state` are those
    of one number (ZeRO, 1910.02054, section 3.1: 2 + 2 + 12 bytes with Adam).
    """
    numbers = plan.trainable
    parts: dict[str, Any] = {}
    if engine == "fsdp2":
        parts["weights"] = plan.weights + (OF_MASTERS - OF_16_BITS) * numbers
        if plan.gradients and accumulation == 1:
            parts["gradients"] = OF_MASTERS * numbers
        states = bytes_of_a_state * numbers
    else:
        states = (bytes_of_a_state + OF_MASTERS) * numbers
    if plan.optimizer:
        parts["optimizer"] = states
    before = sum(getattr(plan, part) for part in parts)
    return dataclasses.replace(plan, peak=plan.peak - before + sum(parts.values()), **parts)


def sizes_of(policy: Any, second: Any = None) -> Sizes:
    """The sizes of a skeleton, and of a second model's that is the reference."""
    units = _units(policy)
    models = [policy]
    gathered_units = list(units)
    if second is not None:
        models.append(second)
        gathered_units += _units(second)

    return Sizes(
        whole=max(_divisible(model) for model in models),
        number=_usual_number(policy),
        trained=_trained(policy),
        trained_number=max(parameter.itemsize for parameter in policy.parameters() if parameter.requires_grad),
        unit=max(_divisible(unit) for unit in gathered_units),
        unit_trained=max(_trained(unit) for unit in units),
        tail=max(_tail(model) for model in models),
        undivided=_undivided(policy),
        undivided_reference=0 if second is None else _undivided(second),
    )


def _units(model: Any) -> list[Any]:
    """The modules that are gathered one at a time: layers by the names that the model gives them, and embeddings.

    A model that names no layers is one unit.
    """
    names = getattr(model, "_no_split_modules", None) or []
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        return [model]
    return [*layers, model.get_input_embeddings()]


def _tail(model: Any) -> int:
    """Bytes of the head, which with tied weights is the embeddings; the last norm is next to nothing."""
    head = model.get_output_embeddings()
    return 0 if head is None else _divisible(head)


def _usual_number(model: Any) -> int:
    """Bytes of one number of the type that most of a model's floating-point numbers have."""
    numbers = Counter[int]()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            numbers[parameter.itemsize] += parameter.numel()
    [(most, _count)] = numbers.most_common(1)
    return most


def _trained(module: Any) -> int:
    """Bytes of the parameters that train."""
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)


def _divisible(module: Any) -> int:
    """Bytes of the parameters that are floating-point numbers."""
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.is_floating_point())


def _undivided(model: Any) -> int:
    """Bytes of what no engine divides: weights packed in bytes with the figures beside them, and buffers."""
    from .packed_weights import quantization_figures  # which brings torch

    size = sum(buffer.nbytes for buffer in model.buffers())
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            size += parameter.nbytes + sum(tensor.nbytes for tensor in quantization_figures(parameter))
    return size
