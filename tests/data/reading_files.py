"""Preference rows in a few forms, written to files and read: what the tests of `read` and of its parts share."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest
from making import said, user

from dpo_recipes.data import preference_dataset as data
from dpo_recipes.data.rows_of_files import row_of
from dpo_recipes.errors import RecipeError
from dpo_recipes.recipe.data import Data


def save(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path, num_proc=None, **fields):
    return data.read(Data(str(path), **fields), {str(path): 1.0}, num_proc=num_proc)


def pairs_of(found) -> list[dict]:
    """Train and held-out pairs together, in the order of their prompts."""
    both = []
    for row in (*found.train, *found.eval):
        both.append({column: row[column] for column in row if column not in ("row", "pair_key")})
    return sorted(both, key=lambda row: str(row["prompt"]))


def refused(path, **fields) -> str:
    with pytest.raises(RecipeError) as caught:
        read(path, **fields)
    message = str(caught.value)
    assert len(message) < 1600 and message.rstrip(")").endswith((".", "?")), message
    return message


def three(n=20, **more):
    return [{"prompt": f"q{i:02}", "chosen": f"good {i}", "rejected": f"bad {i}", **more} for i in range(n)]


def conversations(n=20):
    return [{"chosen": [user(f"q{i:02}"), said("good")], "rejected": [user(f"q{i:02}"), said("bad")]} for i in range(n)]


def h4(n=20):
    """Rows as HuggingFaceH4/ultrafeedback_binarized has them."""
    return [
        {
            "prompt": f"q{i:02}",
            "prompt_id": str(i),
            **row,
            "messages": row["chosen"],
            "score_chosen": 8.0,
            "score_rejected": 4.5,
        }
        for i, row in enumerate(conversations(n))
    ]


EXPLICIT = [{"prompt": [user(f"q{i:02}")], "chosen": [said("good")], "rejected": [said("bad")]} for i in range(20)]
HH = [
    {
        "chosen": f"\n\nHuman: q{i:02}\n\nAssistant: Which one?\n\nHuman: That\n\nAssistant: The sky is blue",
        "rejected": f"\n\nHuman: q{i:02}\n\nAssistant: Which one?\n\nHuman: That\n\nAssistant: The sky",
    }
    for i in range(20)
]

LEAKED = "prompt is in the evaluation pairs"
NO_TRANSCRIPT = "malformed: chosen is no transcript of Human and Assistant in turn"


def only_drop(found) -> tuple[str, dict]:
    ((reason, entry),) = found.report["train"]["dropped"].items()
    assert all(row["prompt"] for row in pairs_of(found))
    return reason, entry


# Rows by which it shows which of them were picked.
NUMBERED = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "n": i} for i in range(10)]


def written(path, rows=NUMBERED):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def numbers(picked) -> list[int]:
    rows, spans = picked
    assert sum(count for _, _, count in spans) == len(rows)
    return [row_of(row)["n"] for row in rows]
