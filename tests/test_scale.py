"""docs/scale.md says what the planner and the arithmetic of tests/bench_scale.py say now."""

from __future__ import annotations

from pathlib import Path

import bench_scale
import pytest
from bench_scale import ARITHMETIC, ENGINES, PAGE, Numbers, all_rows, memory_row, on_paper, trained, written_into

TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ARITHMETIC)
def test_the_tables_without_a_plan_are_those_that_are_computed(name):
    assert written_into(TEXT, name, ARITHMETIC[name]()) == TEXT


def test_every_row_of_the_memory_table_is_there_once_and_in_order():
    table = TEXT.split("<!-- memory -->")[1].split("<!-- end of memory -->")[0]
    rows = [line.rsplit("|", 3)[0] for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {numbers.model} | {numbers.mode} | {numbers.gpus} " for numbers in all_rows()]


@pytest.mark.slow
def test_a_row_of_the_memory_table_is_what_the_planner_says():
    for gpus in (64, 512):  # of one run on paper
        assert memory_row(Numbers("8B", "LoRA", gpus)) in TEXT
    assert on_paper(Numbers("8B", "LoRA", 64), ENGINES[0]).plan.trainable == trained(Numbers("8B", "LoRA", 64))


def test_the_shapes_have_as_many_numbers_as_their_names_say():
    totals = {name: Numbers(name, "full", 8).shape.total for name in bench_scale.MODELS}
    assert totals == {"8B": 8_030_261_248, "70B": 70_553_706_496, "405B": 405_853_388_800}


def test_by_hand_what_70_billion_send_and_compute():
    """141 GB of weights in 16 bits, gathered twice, and as many of gradients, of which a device passes on 7 of 8."""
    numbers = Numbers("70B", "full", 8)
    assert bench_scale.sent(numbers) == pytest.approx(3 * 2 * 70_553_706_496 * 7 / 8)
    weights = 70_553_706_496 - 128_256 * 8192  # without the embedding, which is looked up
    by_hand = 4 * 4096 * (2 * weights + 4 * 80 * 8192 * 2048)
    assert bench_scale.step_flops(numbers) == pytest.approx(by_hand)
    assert bench_scale.step_flops(numbers._replace(mode="LoRA")) == pytest.approx(by_hand * 3 / 4)


def test_the_page_is_found_from_the_readme():
    assert "(docs/scale.md)" in (Path(PAGE).parent.parent / "README.md").read_text(encoding="utf-8")
