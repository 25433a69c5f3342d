"""Why a pair that can be read is not used, and the count of what is dropped."""

from __future__ import annotations

from ..formats.messages import Row
from ..formats.pair_weights import NOTHING
from .batches import NAMED
from .read_row import BY_READER

OUTSIDE_SHARE = "outside its share of the mix"
DUPLICATE = "exact duplicate"
IN_EVALUATION = "prompt is in the evaluation pairs"
EXCLUDED = "named in data.exclude"

# Drops that say nothing against the data, and so do not count for data.max_dropped.
HARMLESS = ("tie", NOTHING, BY_READER, DUPLICATE, OUTSIDE_SHARE, IN_EVALUATION, EXCLUDED)


def count_drop(dropped: dict[str, Row], reason: str, row: str) -> None:
    """Count a row in `dropped`, reason -> {"count", "rows"}, which names the first of each reason."""
    count_drops(dropped, reason, {"count": 1, "rows": [row]})


def count_drops(dropped: dict[str, Row], reason: str, drops: Row) -> None:
    """Count rows, {"count", "rows"}, in `dropped`."""
    known = dropped.setdefault(reason, {"count": 0, "rows": []})
    known["count"] += drops["count"]
    known["rows"] += drops["rows"][: NAMED - len(known["rows"])]
