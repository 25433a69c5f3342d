"""Runs beside each other: what each has come to, by how much they differ, and why they may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..runs.causes import causes
from ..runs.folder import Run


def compare(*runs: Run | Path | str) -> dict[str, Any]:
    """{"runs", "differences", "causes"} of finished runs, from their folders alone.

    `runs`: of each its folder, its recipe's name and the numbers `before` and `after`. `differences`: of each run but
    the first, by how much each metric is above the first's, with its 95 % interval; `paired` where both were measured
    on the same pairs or prompts, and then `size` is how many. `causes`: in what the runs differ, what changes a result
    the most first, with a value for each run. RecipeError for a folder that is no finished run.
    """
    if len(runs) < 2:
        raise UsageError("Name two run folders or more, the one to compare with first: runs/a-... runs/b-...")
    folders = [run if isinstance(run, Run) else Run(run) for run in runs]
    finished = [{"run": str(run.path), **run.evaluation} for run in folders]

    from ..evaluation.comparison import run_differences

    differences: list[dict[str, Any]] = []
    for run in folders[1:]:
        for difference in run_differences(run, folders[0]):
            differences.append({"run": str(run.path), **difference._asdict()})
    found = [{"cause": cause.kind, "name": cause.name, "values": list(cause.values)} for cause in causes(folders)]
    return {"runs": finished, "differences": differences, "causes": found}
