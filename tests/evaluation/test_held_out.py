"""The table of metrics."""

from __future__ import annotations

import pytest

from dpo_recipes.evaluation.held_out import METRICS


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_says_what_it_is_how_it_is_written_and_when_to_worry(metric):
    assert metric.name and metric.words and metric.short != ""
    assert float(format(0.5, metric.form).rstrip("%")) > 0
    assert metric.direction in ("up", "down", "either")
    for sentence in (metric.alarm, metric.meaning):
        assert sentence[0].isupper() and sentence.endswith(".") and ". " not in sentence


def test_the_progress_bar_shows_loss_accuracy_and_margin():
    shown = [(metric.name, metric.short) for metric in METRICS if metric.short]
    assert shown == [("loss", "loss"), ("rewards/accuracies", "accuracy"), ("rewards/margins", "margin")]
