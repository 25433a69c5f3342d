"""What the data report means for a run: findings, some of which stop it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import Finding
from ..formats.oddities import ODDITIES
from .drop_reasons import HARMLESS
from .report import NO_LIMIT

NEAR_ABOVE = 0.01  # share of pairs that are nearly others, above which it is warned of


class Judgement(NamedTuple):
    """What a rule says of a split."""

    level: Literal["pass", "warn", "fail"]
    what: str  # what was found, in numbers
    advice: str  # what it leads to and the ways out; said where the rule does not pass


def split_findings(
    part: dict[str, Any], split: str, *, allow: list[str], max_dropped: float, max_length: int | None
) -> list[Finding]:
    """What a split's part of the data report means for the run; nothing of a stream, which is not known beforehand.

    `allow` and `max_dropped` are those of the recipe's data.
    """
    if "pairs" not in part:
        return []
    findings = [_finding(f"{split} dropped", _judge_drops(part, max_dropped, max_length))]
    findings += oddity_findings(part, split)
    if not part["pairs"]:  # nothing is left that the other rules could judge
        return findings

    for name, rule in STOPS.items():
        judgement = _with_permission(rule(part, max_length), name, allow)
        findings.append(_finding(f"{split} {name}", judgement))
    findings.append(_finding(f"{split} length", _judge_length(part)))
    return findings


def oddity_findings(part: dict[str, Any], split: str) -> list[Finding]:
    """What is odd about many pairs of a split: a warning each, since the data may be meant so."""
    findings = []
    for name, oddity in part.get("oddities", {}).items():
        if name in ODDITIES:
            if oddity["share"] <= ODDITIES[name].said_above:
                continue
            what, advice = ODDITIES[name].what, ODDITIES[name].advice
        else:
            side = name.removeprefix("constant ")
            what = f"have the very same {side} side."
            advice = "What it is, and not what is asked, would be learned: is the column filled as it should be?"
        amount = f"{oddity['count']:,} pairs ({oddity['share']:.1%}; rows {', '.join(oddity['rows'])})"
        findings.append(Finding("warn", f"{split} {name}", f"{amount} {what} {advice}"))
    return findings


def contradiction_findings(report: dict[str, Any], *, allow: list[str], max_dropped: float) -> list[Finding]:
    """What it means that train pairs stand in the data the other way round too; nothing where there are none.

    `report` is the data report of both splits. Of a stream contradictions are not known.
    """
    contradictions = report.get("contradictions")
    if not contradictions or not contradictions["count"]:
        return []

    count = contradictions["count"]
    rows = ", ".join(contradictions["rows"])
    what = f"{count:,} train pairs stand in the data the other way round too: rows {rows} ..."
    if count > max_dropped * report["train"]["kept"] and "contradictions" not in allow:
        advice = "Keep one of each, or accept it: data.allow=['contradictions']."
        return [Finding("fail", "contradictions", f"{what} {advice}")]
    return [Finding("warn", "contradictions", f"{what} Keep one of each.")]


def weight_findings(weights: np.ndarray, coupled: list[str]) -> list[Finding]:
    """What it means that train pairs have these weights; `coupled` are the losses that cannot weigh a pair."""
    what = (
        f"Pairs weigh {weights.min():.3g} to {weights.max():.3g}, on average {weights.mean():.3g}; each pair's loss is "
        "multiplied by its weight, and the sum divided by the number of pairs."
    )
    if coupled:
        return [
            Finding(
                "fail",
                "weights",
                f"{what} loss={coupled[0]!r} is of all pairs of a batch together: none has a loss of its own to be "
                "weighted. Choose another loss, such as 'sigmoid' without sft_weight, or leave the column out.",
            )
        ]
    if not 0.5 <= weights.mean() <= 2:
        advice = "Gradients scale with that average: bring it to 1, or mind the learning rate."
        return [Finding("warn", "weights", f"{what} {advice}")]
    return [Finding("pass", "weights", what)]


def near_duplicate_findings(report: dict[str, Any]) -> list[Finding]:
    """Train pairs, and prompts of evaluation pairs, that stand in the train pairs but for case, white space and
    punctuation. Nothing where there are none; a warning above NEAR_ABOVE of the pairs. Of a stream they are not known.
    """
    train_pairs = _near_findings(
        report,
        "train",
        "near_duplicates",
        noun="train pairs",
        what="differ from an earlier one in case, white space and punctuation alone.",
        advice="They count twice in each epoch: keep one of each.",
    )
    prompts = _near_findings(
        report,
        "eval",
        "near_prompts",
        noun="evaluation pairs",
        what="ask what is trained on, but for case, white space and punctuation.",
        advice="The held-out numbers are too good by that: take these prompts out of one side.",
    )
    return train_pairs + prompts


def _near_findings(
    report: dict[str, Any], split: str, field: str, *, noun: str, what: str, advice: str
) -> list[Finding]:
    """What a field of the report says of a split's pairs that are nearly others; nothing where it says none.

    `what` goes on after the number of pairs, which are called `noun`.
    """
    near = report.get(field)
    if not near or not near["count"]:
        return []
    pairs = report[split]["kept"]
    judgement = _judge_share(near, pairs, what, advice, noun=noun, warn_above=NEAR_ABOVE, fail_above=1)
    return [_finding(f"{split} {field.replace('_', ' ')}", judgement)]


def _finding(name: str, judgement: Judgement) -> Finding:
    if judgement.level == "pass":
        return Finding("pass", name, judgement.what)
    return Finding(judgement.level, name, f"{judgement.what} {judgement.advice}")


def _with_permission(judgement: Judgement, name: str, allow: list[str]) -> Judgement:
    """A stop that data.allow names is a warning; any other names data.allow as a way out."""
    if judgement.level != "fail":
        return judgement
    if name in allow:
        return Judgement("warn", judgement.what, f"{judgement.advice} Allowed by data.allow=['{name}'].")
    return Judgement("fail", judgement.what, f"{judgement.advice} Or accept it: data.allow=['{name}'].")


def _level(count: int, pairs: int, *, warn_above: float, fail_above: float) -> Literal["pass", "warn", "fail"]:
    """The level of a defect of `count` pairs; the limits are shares of all pairs."""
    if count > fail_above * pairs:
        return "fail"
    if count > warn_above * pairs:
        return "warn"
    return "pass"


def _of_pairs(count: int | None, pairs: int, rows: list[str] | None = None, noun: str = "pairs") -> str:
    """Such as `3 of 1,200 pairs (0.2%; rows 4, 17, 90)`."""
    count = count or 0
    share = f"{count / max(pairs, 1):.1%}"
    if rows:
        share += f"; rows {', '.join(rows)}"
    return f"{count:,} of {pairs:,} {noun} ({share})"


def _judge_share(
    defect: dict[str, Any],
    pairs: int,
    what: str,
    advice: str,
    *,
    noun: str = "pairs",
    warn_above: float = 0,
    fail_above: float = 0.05,
) -> Judgement:
    """A defect, {"count", "rows"}, by the share of pairs that have it; `what` goes on after their number."""
    level = _level(defect["count"], pairs, warn_above=warn_above, fail_above=fail_above)
    return Judgement(level, f"{_of_pairs(defect['count'], pairs, defect['rows'], noun)} {what}", advice)


def _judge_drops(part: dict[str, Any], max_dropped: float, max_length: int | None) -> Judgement:
    """Pairs that were lost to defects; what was dropped on purpose says nothing against the data."""
    lost = {reason: drop for reason, drop in part["dropped"].items() if reason not in HARMLESS}
    lost_pairs = sum(drop["count"] for drop in lost.values())
    pairs = part["pairs"] + lost_pairs

    what = f"{_of_pairs(lost_pairs, pairs)} are dropped at max_length={max_length}."
    for reason, drop in lost.items():
        what += f" {reason}: {_of_pairs(drop['count'], pairs, drop['rows'])}."
    too_many = lost_pairs / max(pairs, 1) > max_dropped or not part["pairs"]

    ways_out = ["Correct the rows"]
    if any(reason == "identical after the chat template" for reason in lost):
        ways_out.append("change data.chat_template, which writes both sides alike")
    if any(reason.startswith("the chat template refuses it") for reason in lost):
        ways_out.append("change data.chat_template, or set data.system=merge where it has no system role")
    if any(reason.startswith("the model's processor refuses it") for reason in lost):
        ways_out.append("take other images")
    if any("max_length" in reason or "truncat" in reason for reason in lost):
        ways_out.append("raise max_length")
    if part["pairs"]:
        ways_out.append("allow it with data.max_dropped")
    advice = ways_out[0]
    if len(ways_out) > 1:
        advice = f"{', '.join(ways_out[:-1])}, or {ways_out[-1]}"
    return Judgement("fail" if too_many else "pass", what, f"{advice}.")


def _judge_truncation(part: dict[str, Any], max_length: int | None) -> Judgement:
    truncated = part["truncated"]
    enough = part["max_length_keeping_99"]
    cut_pairs = _of_pairs(truncated["pairs"], part["pairs"], truncated["rows"])
    # Of fewer than a hundred pairs, the length that keeps 99 % whole is that of the longest.
    kept_whole = "99 %" if part["pairs"] >= 100 else "all"
    few_are_far_longer = truncated["pairs"] <= 0.05 * part["pairs"] and enough > 4 * (max_length or NO_LIMIT)
    if few_are_far_longer:
        advice = "They are far longer than the others: data.drop_truncated=True leaves them out."
    else:
        advice = f"Set max_length={enough}, or data.drop_truncated=True."
    return Judgement(
        _level(truncated["pairs"], part["pairs"], warn_above=0.01, fail_above=0.25),
        f"{cut_pairs} are cut at max_length={max_length}; {enough} would keep {kept_whole} whole.",
        f"A side without its end teaches to run on. {advice}",
    )


def _judge_border(part: dict[str, Any], max_length: int | None) -> Judgement:
    """Prompts of which the tokens depend on what follows, such as a template that opens <think> for answers only."""
    border = part["border"]
    return _judge_share(
        border,
        part["pairs"],
        "have a prompt whose tokens change when an answer follows.",
        f"Its end {border['example']!r} is left out: answers are learned behind other tokens than they are asked for. "
        "Change data.chat_template_kwargs (thinking?) or data.chat_template; end text prompts before a space.",
    )


def _judge_lost_text(part: dict[str, Any], max_length: int | None) -> Judgement:
    """Text that is in the data and not in what is trained on. White space around a message does not count."""
    lost = part["lost_text"]
    return _judge_share(
        lost,
        part["pairs"],
        "lose text in the chat template.",
        f"It leaves out or changes {lost['example']}. Mend data.chat_template or data.chat_template_kwargs, or set "
        "data.system=merge where it passes over system messages.",
    )


def _judge_special_tokens(part: dict[str, Any], max_length: int | None) -> Judgement:
    return _judge_share(
        part["special_tokens"],
        part["pairs"],
        "hold control tokens such as the end token in their texts.",
        "Were they rendered before? The chat template would do it again: set data.format='text', or take them out.",
    )


def _judge_start_token(part: dict[str, Any], max_length: int | None) -> Judgement:
    start_token = part["start_token"]
    level: Literal["pass", "warn", "fail"] = "pass"
    if start_token["doubled"]:
        level = "fail"
    elif start_token["wanted"] and start_token["none"]:
        level = "warn"
    doubled = _of_pairs(start_token["doubled"], part["pairs"], start_token["rows"])
    return Judgement(
        level,
        f"{doubled} start with two start tokens, {start_token['none'] or 0:,} with none.",
        "The tokenizer adds one to plain text: a conversation needs one too, from data.chat_template, and no second.",
    )


def _judge_end_token(part: dict[str, Any], max_length: int | None) -> Judgement:
    end_token = part["end_token"]
    pairs = part["pairs"]
    level: Literal["pass", "warn", "fail"] = "pass"
    if max(end_token["missing"], end_token["repeated"]) > 0.05 * pairs:
        level = "fail"
    elif end_token["pairs"]:
        level = "warn"
    missing = _of_pairs(end_token["missing"], pairs)
    repeated = _of_pairs(end_token["repeated"], pairs)
    rows = ", ".join(end_token["rows"])
    return Judgement(
        level,
        f"The end token is missing in {missing} and repeated in {repeated}.",
        f"Answers would not stop, or stop twice: rows {rows}. Change data.chat_template, which ends an answer with "
        "{{ eos_token }}, or rows.",
    )


def _judge_length(part: dict[str, Any]) -> Judgement:
    """A preference that length alone tells is a warning, never a stop: the data may be meant so.

    Of a few pairs the longer side may be right by chance: within 1.96 standard errors of a half nothing is said.
    """
    accuracy = part["pick_longer_accuracy"]
    far_from_half = max(0.2, 1.96 * 0.5 / math.sqrt(part["pairs"]))
    return Judgement(
        "warn" if abs(accuracy - 0.5) > far_from_half else "pass",
        f"To pick the longer side is right in {accuracy:.1%} of the pairs.",
        "Length may be all that is learned; loss='sigmoid_norm' or trl={'ld_alpha': 0.5} weigh it less.",
    )


# The rules that can stop a run, in the order in which they are said. With `contradictions`, these are the names that
# data.allow takes. A rule is given a split's part of the report, and max_length.
STOPS: dict[str, Callable[[dict[str, Any], int | None], Judgement]] = {
    "truncated": _judge_truncation,
    "border": _judge_border,
    "lost_text": _judge_lost_text,
    "special_tokens": _judge_special_tokens,
    "start_token": _judge_start_token,
    "end_token": _judge_end_token,
}
