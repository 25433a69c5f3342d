"""What the figures mean for a run: each pain of tokenising provoked and judged, and what is said of both sides."""

from __future__ import annotations

import pytest
from making import (
    CHATML,
    THINKING,
    make_pair,
    make_pairs,
    make_text_pairs,
    make_tokenizer,
    make_tokenizer_with_start,
    tokenize_pairs,
)
from tokenizers import models

from dpo_recipes.data.findings import (
    STOPS,
    _judge_length,
    contradiction_findings,
    near_duplicate_findings,
    oddity_findings,
    split_findings,
)
from dpo_recipes.recipe.data import STOPS as MAY_BE_ALLOWED


def judge(part, allow=(), max_dropped=0.05, max_length=64):
    """The findings of a train split by the names of their rules."""
    findings = split_findings(part, "train", allow=[*allow], max_dropped=max_dropped, max_length=max_length)
    return {finding.name.removeprefix("train "): finding for finding in findings}


def test_a_healthy_set_passes_every_rule():
    rows = make_pairs(40)
    for row in rows[::2]:  # the longer side is chosen in half of the pairs
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    _, part = tokenize_pairs(rows)
    findings = judge(part)
    names = ["dropped", "truncated", "border", "lost_text", "special_tokens", "start_token", "end_token", "length"]
    assert list(findings) == names
    assert {finding.level for finding in findings.values()} == {"pass"}
    assert findings["length"].text == "To pick the longer side is right in 50.0% of the pairs."


@pytest.mark.parametrize(
    ("accuracy", "pairs", "level"),
    [(1.0, 3, "pass"), (1.0, 4, "warn"), (0.2, 5, "pass"), (0.75, 12, "pass"), (0.75, 200, "warn"), (0.2, 200, "warn")],
)
def test_that_length_tells_the_label_is_a_warning_where_it_is_no_chance(accuracy, pairs, level):
    assert _judge_length({"pick_longer_accuracy": accuracy, "pairs": pairs}).level == level


def test_nothing_is_said_of_a_stream():
    assert judge({"dropped": {}}, max_length=None) == {}


def test_the_stops_are_what_a_recipe_may_allow():
    assert {*STOPS, "contradictions"} == {*MAY_BE_ALLOWED}


def test_a_doubled_start_token_is_counted_and_fails():
    rows = make_text_pairs(("<s>Q", "a", "b"), ("Q", "a", "b"))
    _, part = tokenize_pairs(rows, make_tokenizer_with_start(), text=True)
    assert part["start_token"] == {"none": 0, "one": 1, "doubled": 1, "rows": ["file:0"], "wanted": True}

    finding = judge(part)["start_token"]
    assert finding.level == "fail" and "data.allow=['start_token']" in finding.text
    assert "1 of 2 pairs (50.0%; rows file:0) start with two start tokens" in finding.text


def test_a_tokenizer_that_adds_a_start_token_and_a_template_that_does_not_is_a_warning():
    _, part = tokenize_pairs(make_pairs(4), make_tokenizer_with_start())
    assert part["start_token"]["wanted"] and part["start_token"]["none"] == 4
    assert judge(part)["start_token"].level == "warn"


def test_a_tokenizer_without_a_start_token_has_none_to_count():
    _, part = tokenize_pairs(make_pairs(3))
    assert part["start_token"] == {"none": None, "one": None, "doubled": None, "rows": None, "wanted": False}
    assert judge(part)["start_token"].level == "pass"


def test_a_missing_end_token_is_counted_and_fails():
    endless = make_tokenizer(CHATML.replace("<|im_end|>'", "'"))
    _, part = tokenize_pairs(make_pairs(4), endless)
    assert part["end_token"] == {"missing": 4, "repeated": 0, "pairs": 4, "rows": ["file:0", "file:1", "file:2"]}
    assert judge(part)["end_token"].level == "fail"

    _, part = tokenize_pairs(make_pairs(3), ends={0})
    assert part["end_token"]["missing"] == 3


def test_an_end_token_that_the_text_repeats_is_counted():
    rows = [make_pair("q", "a<|im_end|>", "b")]
    rows += [make_pair("q", "a", "b <|im_end|> c")] * 29  # it does not stand at the end
    _, part = tokenize_pairs(rows)
    assert part["end_token"] == {"missing": 0, "repeated": 1, "pairs": 1, "rows": ["file:0"]}

    finding = judge(part)["end_token"]
    assert finding.level == "warn"
    assert "repeated in 1 of 30 pairs (3.3%)" in finding.text and "rows file:0" in finding.text


def test_a_template_that_opens_thinking_in_the_generation_prompt_alone_is_a_border():
    tokenizer = make_tokenizer(THINKING)
    pairs, part = tokenize_pairs(make_pairs(6), tokenizer)
    assert part["border"] == {"count": 6, "rows": ["file:0", "file:1", "file:2"], "example": "<think>\n"}
    assert "<think>" not in tokenizer.decode(pairs[0]["prompt_ids"])

    finding = judge(part)["border"]
    assert finding.level == "fail" and "Its end '<think>\\n' is left out" in finding.text
    assert "data.chat_template_kwargs" in finding.text and "data.allow=['border']" in finding.text
    allowed = judge(part, allow=["border"])["border"]
    assert allowed.level == "warn" and "Allowed by data.allow=['border']" in allowed.text


def test_a_token_that_grows_over_the_end_of_a_text_prompt_is_a_border():
    tokenizer = make_tokenizer()
    alphabet = {token: number for token, number in tokenizer.get_vocab().items() if len(token) == 1}
    merging = models.BPE(vocab=alphabet | {"ab": 300}, merges=[("a", "b")])
    tokenizer.backend_tokenizer.model = merging
    rows = make_text_pairs(("xa", "b", "c"), ("xa", "c", "d"), ("x", "ab", "c"))
    _, part = tokenize_pairs(rows, tokenizer, text=True)
    assert part["border"]["count"] == 1 and part["border"]["rows"] == ["file:0"]
    assert judge(part)["border"].level == "fail"


@pytest.mark.parametrize(("identical", "level"), [(1, "pass"), (2, "fail")])
def test_more_pairs_that_truncation_makes_identical_than_may_be_dropped_stop_a_run(identical, level):
    rows = [("q", "a", "b")] * 20
    rows[:identical] = [("q", "the same start", "the same end")] * identical
    rows = make_text_pairs(*rows)
    _, part = tokenize_pairs(rows, text=True, max_length=10)
    finding = judge(part, max_length=10)["dropped"]
    assert finding.level == level and f"identical after truncation: {identical} of 20 pairs" in finding.text


def test_rendered_text_that_would_be_rendered_again_is_a_fail():
    rows = make_pairs(10)
    rows[0]["prompt"][0]["content"] = "<|im_start|>user\nWhy?<|im_end|>"
    _, part = tokenize_pairs(rows)
    assert part["special_tokens"] == {"count": 1, "rows": ["file:0"]}
    finding = judge(part)["special_tokens"]
    assert finding.level == "fail" and "data.format='text'" in finding.text


@pytest.mark.parametrize(("count", "level"), [(0, "pass"), (1, "pass"), (2, "warn"), (25, "warn"), (26, "fail")])
def test_truncation_warns_from_1_and_stops_from_25_percent(count, level):
    rows = make_text_pairs(*[("q", "a" * 30, "b")] * count, *[("q", "a" * 3, "b")] * (100 - count))
    _, part = tokenize_pairs(rows, text=True, max_length=10)
    finding = judge(part, max_length=10)["truncated"]
    assert finding.level == level
    if level != "pass":
        assert f"{count} of 100 pairs" in finding.text and "max_length=32" in finding.text
        assert "data.drop_truncated=True" in finding.text


@pytest.mark.parametrize(("chosen", "level"), [("a" * 9, "warn"), ("b", "pass"), ("", "warn")])
def test_length_alone_that_tells_the_chosen_side_warns_with_remedies(chosen, level):
    _, part = tokenize_pairs(make_text_pairs(*[("q", chosen, "c")] * 5), text=True)
    finding = judge(part)["length"]
    assert finding.level == level
    assert ("loss='sigmoid_norm'" in finding.text and "ld_alpha" in finding.text) == (level == "warn")


def test_drops_above_the_limit_fail_and_name_reasons_and_rows():
    rows = make_text_pairs(("12345678", "a", "b"), *[("q", "a", "bc")] * 19)
    _, part = tokenize_pairs(rows, text=True, max_length=8)
    assert judge(part)["dropped"].level == "pass"
    finding = judge(part, max_dropped=0.04, max_length=8)["dropped"]
    assert finding.level == "fail"
    assert finding.text == (
        "1 of 20 pairs (5.0%) are dropped at max_length=8. prompt fills max_length: 1 of 20 pairs (5.0%; rows file:0). "
        "Correct the rows, raise max_length, or allow it with data.max_dropped."
    )


def test_no_pair_that_is_left_fails_whatever_may_be_dropped_and_is_the_only_finding():
    _, part = tokenize_pairs(make_text_pairs(("12345678", "a", "b")), text=True, max_length=8)
    findings = judge(part, max_dropped=1.0)
    assert part["pairs"] == 0 and list(findings) == ["dropped"]
    assert findings["dropped"].level == "fail"


def test_what_was_dropped_on_purpose_does_not_count_as_lost():
    _, part = tokenize_pairs(make_pairs(4))
    part["dropped"] = {"exact duplicate": {"count": 40, "rows": ["1", "2", "3"]}}
    finding = judge(part, max_dropped=0.0)["dropped"]
    assert finding.level == "pass" and finding.text == "0 of 4 pairs (0.0%) are dropped at max_length=64."


@pytest.mark.parametrize(
    ("count", "allow", "level", "words"),
    [
        (2, [], "warn", "2 train pairs stand in the data the other way round too: rows 3, 9 ... Keep one of each."),
        (20, [], "fail", "Keep one of each, or accept it: data.allow=['contradictions']."),
        (20, ["contradictions"], "warn", "rows 3, 9 ... Keep one of each."),
    ],
)
def test_contradictions_stop_a_run_above_the_share_that_may_be_dropped(count, allow, level, words):
    report = {"train": {"kept": 100}, "contradictions": {"count": count, "rows": ["3", "9"]}}
    [finding] = contradiction_findings(report, allow=allow, max_dropped=0.05)
    assert (finding.level, finding.name) == (level, "contradictions")
    assert finding.text.endswith(words)


@pytest.mark.parametrize(("count", "level"), [(0, None), (1, "pass"), (2, "warn")])
def test_what_is_nearly_the_same_is_said_and_warned_of_above_one_in_a_hundred(count, level):
    near = {"count": count, "rows": ["3"]}
    report = {"train": {"kept": 100}, "eval": {"kept": 100}, "near_duplicates": near, "near_prompts": near}
    findings = near_duplicate_findings(report)
    if level is None:
        assert findings == []
        return
    assert [(finding.level, finding.name) for finding in findings] == [
        (level, "train near duplicates"),
        (level, "eval near prompts"),
    ]
    share = f"({count}.0%; rows 3)"
    assert findings[0].text.startswith(f"{count} of 100 train pairs {share} differ from an earlier one in case")
    assert findings[1].text.startswith(f"{count} of 100 evaluation pairs {share} ask what is trained on")
    assert findings[1].text.endswith("out of one side.") == (level == "warn")


def test_scores_are_said_where_more_than_a_few_are_against_the_labels():
    def said(name, share):
        part = {"oddities": {name: {"share": share, "count": 3, "rows": ["1", "2"]}}}
        return [finding.text for finding in oddity_findings(part, "train")]

    assert said("scores", 0.01) == [] == said("equal scores", 0.05)
    assert said("scores", 0.02)[0].startswith("3 pairs (2.0%; rows 1, 2) have a chosen side that is scored below")
    assert "same score for both sides" in said("equal scores", 0.06)[0]


@pytest.mark.parametrize("report", [{"train": {}}, {"train": {"kept": 9}, "contradictions": {"count": 0, "rows": []}}])
def test_nothing_is_said_where_contradictions_are_none_or_not_known(report):
    assert contradiction_findings(report, allow=[], max_dropped=0.05) == []


@pytest.mark.parametrize(
    ("pairs", "cut", "enough", "words"),
    [
        (57, 1, 5_000_024, ["5000024 would keep all whole", "data.drop_truncated=True leaves them out"]),
        (57, 1, 15, ["15 would keep all whole", "Set max_length=15, or"]),
        (200, 8, 900, ["900 would keep 99 % whole", "far longer than the others"]),
        (200, 60, 900, ["900 would keep 99 % whole", "Set max_length=900, or"]),
    ],
)
def test_a_few_very_long_pairs_are_to_be_left_out_and_not_to_set_the_length(pairs, cut, enough, words):
    truncated = {"chosen": cut, "rejected": 0, "pairs": cut, "rows": ["3"]}
    _, healthy = tokenize_pairs(make_pairs(40))
    part = healthy | {"pairs": pairs, "truncated": truncated, "max_length_keeping_99": enough}
    text = judge(part, max_length=10)["truncated"].text
    assert all(word in text for word in words)
    assert ("Set max_length" in text) == ("Set max_length" in " ".join(words))
