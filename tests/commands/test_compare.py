"""`compare`: runs beside each other from their folders alone."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dpo_recipes import RecipeError, Run, compare
from dpo_recipes.errors import UsageError
from dpo_recipes.evaluation.closing_table import difference_rows, rows_of_runs
from dpo_recipes.result_tables import causes_table, differences_of_runs_table, runs_table


@pytest.fixture
def runs(finished) -> list[Run]:
    """Two runs that differ in their beta alone."""
    return [finished("LoRA(r=4)", ("beta=0.1",)).run, finished().run]


@pytest.mark.slow
def test_runs_are_compared_on_what_both_have_and_the_cause_is_named(runs):
    result = compare(*runs)
    assert [run["run"] for run in result["runs"]] == [str(run.path) for run in runs]
    assert result["runs"][0]["after"] == runs[0].evaluation["after"]
    assert [(cause["name"], cause["values"]) for cause in result["causes"]] == [("beta", [0.1, 0.4])]

    found = {difference["metric"]: difference for difference in result["differences"]}
    for metric in ("rewards/accuracies", "reward", "win_rate", "kl"):
        assert found[metric]["paired"] and found[metric]["run"] == str(runs[1].path)
        after = [run.evaluation["after"][metric] for run in runs]
        assert found[metric]["difference"] == pytest.approx(after[1] - after[0], abs=1e-6)
    assert found["rewards/accuracies"]["size"] == len(runs[0].pairs)
    assert "rewards/margins" not in found

    texts = rows_of_runs(result["runs"])
    assert dict(texts)["win rate over reference"] == [f"{run.evaluation['after']['win_rate']:.3f}" for run in runs]
    tables = [
        runs_table(["a", "b"], texts),
        differences_of_runs_table("B", difference_rows(result["differences"])),
        causes_table(result["causes"], 2),
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(*tables)
    shown = console.file.getvalue()
    assert "B against A" in shown and "beta" in shown and "the same" in shown

    alone = compare(runs[0], runs[0])
    assert alone["causes"] == [] and all(each["difference"] == 0 for each in alone["differences"])


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="Name two run folders"):
        compare(tmp_path)
    with pytest.raises(RecipeError, match="There is no run folder"):
        compare(tmp_path, tmp_path / "none")
    with pytest.raises(RecipeError, match=r"has no evaluation\.json: the run has not come that far"):
        compare(tmp_path, tmp_path)
