"""The tables of docs/scale.md: what 8, 70 and 405 billion parameters take on 8, 64 and 512 GPUs, by our own planner.

`python tests/bench_scale.py` plans all of them, which takes some minutes, and writes the tables into the page; with
`arithmetic` it writes those alone that need no plan. Nothing is measured here, and no weights are read.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from dpo_recipes import Data, LoRA, Recipe
from dpo_recipes.planning.amounts import USABLE
from dpo_recipes.planning.engines import Launch, OnPaper, of_engine, plan_on_paper
from dpo_recipes.planning.from_shape import session_of_shape
from dpo_recipes.planning.memory import largest_pairs
from dpo_recipes.planning.shapes import Shape, config_of, shape_of
from dpo_recipes.recipe.resolve import Device

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
MODELS = {"8B": "meta-llama/Llama-3.1-8B-Instruct", "70B": "meta-llama/Llama-3.1-70B-Instruct"}
MODELS["405B"] = "meta-llama/Llama-3.1-405B-Instruct"
ADAPTERS = {"full": None, "LoRA": LoRA(r=16)}
GPUS = (8, 64, 512)
ENGINES = ("fsdp2", "zero3")
LENGTH = 2048  # tokens of a side with its prompt
PAIRS = 10_000_000

# What is assumed of the machines
PEAK = 989e12  # FLOP/s of an H100 in bf16, without sparsity
USED = 0.4  # share of it: 38 to 43 % in Llama 3's own training (2407.21783, table 4)
IN_A_MACHINE = 450e9  # bytes a second that a GPU sends to the others of its machine: NVLink of an H100
GPUS_OF_A_MACHINE = 8
TO_OTHERS = GPUS_OF_A_MACHINE * 50e9  # that a machine sends to the next: 400 Gb/s of InfiniBand for each of its GPUs
OF_16_BITS, OF_32_BITS = 2, 4
FREE_OF_80 = USABLE * 80  # GB


class Numbers(NamedTuple):
    """What a row of the tables is about."""

    model: str
    mode: str
    gpus: int

    @property
    def shape(self) -> Shape:
        config = config_of(MODELS[self.model])
        assert config is not None
        shape = shape_of(config)
        assert shape is not None
        return shape

    def recipe(self) -> Recipe:
        return Recipe(
            model=MODELS[self.model],
            data=Data("pairs.jsonl"),
            adapter=ADAPTERS[self.mode],
            max_length=LENGTH,
            micro_batch_size=1,
            global_batch_size=self.gpus,
        )


def trained(numbers: Numbers) -> int:
    """Numbers that train: all of them, or an adapter's two matrices beside each linear map."""
    shape, adapter = numbers.shape, ADAPTERS[numbers.mode]
    if adapter is None:
        return shape.total
    return shape.layers * sum(adapter.r * (inputs + outputs) for inputs, outputs in shape.maps.values())


def sent(numbers: Numbers) -> float:
    """Bytes that a device sends in a step, under FSDP2 as under ZeRO-3.

    All weights are gathered for the forward and once more for the backward, in 16 bits, and the gradients of what
    trains are reduced and scattered: 3 numbers each where all train (ZeRO, 1910.02054, section 7.2.2). In a ring each
    device passes on all parts but its own, and so does each machine to the next, over all its adapters at once.
    """
    amount = OF_16_BITS * (2 * numbers.shape.total + trained(numbers))
    return amount * (numbers.gpus - 1) / numbers.gpus


def sending_seconds(numbers: Numbers) -> float:
    return sent(numbers) / (IN_A_MACHINE if numbers.gpus <= GPUS_OF_A_MACHINE else TO_OTHERS)


def forward_flops(numbers: Numbers) -> float:
    """FLOPs of one pair's forward: 2 for each weight and token, and 4 layers x width x length of attention (2001.08361,
    section 2.1). The embedding is looked up and not multiplied."""
    shape = numbers.shape
    weights = shape.total - shape.words * shape.width
    return 2 * LENGTH * (2 * weights + 4 * shape.layers * shape.width * LENGTH)


def step_flops(numbers: Numbers) -> float:
    """Of a pair in a step: forward, the same again for the backward (checkpointing), and the backward itself, which has
    twice as many, or as many where no weight but an adapter's has a gradient."""
    return forward_flops(numbers) * (4 if numbers.mode == "full" else 3)


def computing_seconds(numbers: Numbers) -> float:
    return step_flops(numbers) / (USED * PEAK)


def pairs_a_second(numbers: Numbers) -> float:
    """With one pair at a time on each device, where sending is hidden behind computing as far as it can be."""
    return numbers.gpus / max(computing_seconds(numbers), sending_seconds(numbers))


def all_rows() -> Iterator[Numbers]:
    for model in MODELS:
        for mode in ADAPTERS:
            for gpus in GPUS:
                yield Numbers(model, mode, gpus)


# ------------------------------------------------------------------------------------------------------- the tables


def planned_for(numbers: Numbers) -> int:
    """For how many GPUs the worst moment is looked for.

    Where all train, gradients decide it on few; from 64 on, and with an adapter, no part that is divided does, so that
    one run on paper serves all.
    """
    return 8 if numbers.mode == "full" and numbers.gpus < 64 else 64


@functools.cache
def on_paper(numbers: Numbers, engine: str) -> OnPaper:
    """The planner's run on paper, before anything is divided."""
    recipe = numbers.recipe()
    device = Device("cuda", bf16=True, processes=numbers.gpus)
    with session_of_shape(recipe, Console(quiet=True), device) as session:
        assert session is not None
        return plan_on_paper(session, device, largest_pairs(session, {}), recipe, engine)


def memory_cells(numbers: Numbers) -> dict[str, float]:
    """Engine -> GB of one device at its worst moment, by the planner."""
    recipe = numbers.recipe()
    cells = {}
    for engine in ENGINES:
        paper = on_paper(numbers._replace(gpus=planned_for(numbers)), engine)
        cells[engine] = of_engine(paper, recipe, Launch(numbers.gpus, engine)).peak / 1e9
    return cells


def held(numbers: Numbers) -> float:
    """GB that a device holds in every step: 16 bytes of each number, or 2 of each that no adapter's is."""
    bytes_of_a_number = 16 if numbers.mode == "full" else OF_16_BITS
    return bytes_of_a_number * numbers.shape.total / numbers.gpus / 1e9


def memory_row(numbers: Numbers) -> str:
    if held(numbers) > FREE_OF_80:  # whatever a step needs beside that
        told = [f"**> {held(numbers):.0f}**" for _ in ENGINES]
    else:
        told = [f"{gb:.1f}" if gb < FREE_OF_80 else f"**{gb:.0f}**" for gb in memory_cells(numbers).values()]
    return f"| {numbers.model} | {numbers.mode} | {numbers.gpus} | {' | '.join(told)} |"


def memory_table() -> str:
    lines = ["| model | trained | GPUs | FSDP2, GB | ZeRO-3, GB |", "|---|---|---|---|---|"]
    for numbers in all_rows():
        lines.append(memory_row(numbers))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def speed_table() -> str:
    lines = [
        "| model | trained | GPUs | GB sent | s to send | s to compute a pair | pairs a second | 10 M pairs, days |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for numbers in all_rows():
        rate = pairs_a_second(numbers)
        lines.append(
            f"| {numbers.model} | {numbers.mode} | {numbers.gpus} | {sent(numbers) / 1e9:.0f} | "
            f"{sending_seconds(numbers):.2f} | {computing_seconds(numbers):.2f} | {_of_two_digits(rate)} | "
            f"{_of_two_digits(PAIRS / rate / 86_400)} |"
        )
    return "\n".join(lines)


def _of_two_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def reference_table() -> str:
    lines = [
        "| model | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " | host memory a machine, full | LoRA |",
        f"|---|{''.join('---|' for _ in GPUS)}---|---|",
    ]
    for model in MODELS:
        hours = []
        for gpus in GPUS:
            numbers = Numbers(model, "full", gpus)
            gathered = numbers._replace(mode="LoRA")  # of which one gathering of the two, and no gradients
            sending = sending_seconds(gathered) / 2
            seconds = max(forward_flops(numbers) / (USED * PEAK), sending)
            hours.append(f"{PAIRS * seconds / gpus / 3600:,.0f} h")
        total = numbers.shape.total
        full = GPUS_OF_A_MACHINE * OF_32_BITS * total / 1e9
        lora = OF_16_BITS * total / 1e9
        lines.append(f"| {model} | {' | '.join(hours)} | {full:,.0f} GB | {lora:,.0f} GB |")
    return "\n".join(lines)


ARITHMETIC = {"speed": speed_table, "reference": reference_table}
TABLES = {"memory": memory_table, **ARITHMETIC}


def written_into(page: str, name: str, table: str) -> str:
    """The page with a table in its place, between two comments."""
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)"
    assert re.search(pattern, page, re.S), name
    return re.sub(pattern, lambda found: found[1] + table + found[2], page, flags=re.S)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    for name, table in (ARITHMETIC if sys.argv[1:] == ["arithmetic"] else TABLES).items():
        page = written_into(page, name, table())
    PAGE.write_text(page, encoding="utf-8")
