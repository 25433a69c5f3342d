"""Amounts of memory, read and written."""

from __future__ import annotations

import pytest

from dpo_recipes.errors import UsageError
from dpo_recipes.planning.amounts import format_memory, parse_memory


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("512mb", 512 * 10**6), ("1.5g", 15 * 10**8), ("1TiB", 2**40)],
)
def test_memory_is_read_as_people_write_it(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "24 gigs", "-1GB", "0GB", "1.GB", "24"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(UsageError, match="is no amount of memory. Examples: 24GB, 80GiB, 512MB"):
        parse_memory(text)


def test_memory_is_written_as_people_read_it():
    assert [format_memory(size) for size in (24e9, 10**8, 99_900_000, 10**6)] == [
        "24.00 GB",
        "0.10 GB",
        "99.9 MB",
        "1.0 MB",
    ]
