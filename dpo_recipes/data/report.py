"""The data report of a split: lengths, costs and defects of its tokenised pairs; and what they mean for a run.

Leans on TRL 1.16: how far its collator pads the rows of a batch, and what max_length cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import Finding
from ..formats.oddities import ODDITIES
from .preference_dataset import HARMLESS

NEAR_ABOVE = 0.01  # share of pairs that are nearly others, above which it is said
NO_LIMIT = 2**60  # tokens: longer than any sequence, for max_length=None


@dataclass(frozen=True)
class Figures:
    """What is counted of each pair: arrays with one integer a pair. The names are columns of the tokenised pairs."""

    prompt_tokens: np.ndarray  # of the prompt, as far as both completions leave its tokens alone
    chosen_tokens: np.ndarray  # of the chosen completion
    rejected_tokens: np.ndarray  # of the rejected completion
    common_tokens: np.ndarray  # with which both completions start
    left_out_tokens: np.ndarray  # at the prompt's end: they change when an answer follows, and stand in no part
    start_tokens: np.ndarray  # the tokenizer's start tokens, at the start of the sequence
    fewest_ends: np.ndarray  # end tokens at the end of a side: of the side that has fewer
    most_ends: np.ndarray  # end tokens at the end of a side: the most of one kind
    lost_text: np.ndarray  # 1 where the chat template leaves out or changes the text of a message, or the tools
    control_tokens: np.ndarray  # 1 where a control token stands in the text of a message, else 0

    def select(self, pairs: np.ndarray) -> Figures:
        """The figures of some pairs, by their numbers."""
        return Figures(**{name: getattr(self, name)[pairs] for name in FIGURES})


FIGURES = [field.name for field in fields(Figures)]


def split_report(
    every: Figures,
    kept: Figures,
    rows: Sequence[str],
    *,
    dropped: dict[str, Any],
    max_length: int | None,
    micro_batch_size: int,
    seed: int,
    adds_start_token: bool | None,
    border_example: str | None,
    lost_example: str | None,
) -> dict[str, Any]:
    """The part of the data report that needs tokens, JSON-able.

    `every`: figures of all pairs; `kept`: of those that are left, whose rows are named by `rows`; `dropped`: why the
    others are not, reason -> {"count", "rows"}; `adds_start_token`: what the tokenizer does to plain text, None where
    it has no start token; `border_example`: text that the first of the pairs in question leaves out;
    `lost_example`: what the chat template loses of the first pair of which it loses something.
    """
    limit = max_length or NO_LIMIT
    pairs = len(kept.prompt_tokens)
    shares_of = max(pairs, 1)
    whole_lengths = np.sort(every.prompt_tokens + np.maximum(every.chosen_tokens, every.rejected_tokens))

    chosen_is_cut = kept.prompt_tokens + kept.chosen_tokens > limit
    rejected_is_cut = kept.prompt_tokens + kept.rejected_tokens > limit
    is_cut = chosen_is_cut | rejected_is_cut

    chosen_is_longer = kept.chosen_tokens > kept.rejected_tokens
    equally_long = kept.chosen_tokens == kept.rejected_tokens  # whoever picks the longer one guesses here

    has_border = kept.left_out_tokens > 0
    loses_text = kept.lost_text > 0
    has_control_token = kept.control_tokens > 0
    misses_end = kept.fewest_ends == 0
    repeats_end = kept.most_ends > 1

    return {
        "pairs": pairs,
        "dropped": dropped,
        "tokens": {  # of all pairs, before truncation
            "prompt": _quantiles(every.prompt_tokens),
            "chosen": _quantiles(every.chosen_tokens),
            "rejected": _quantiles(every.rejected_tokens),
        },
        "truncated": {
            "chosen": int(chosen_is_cut.sum()),
            "rejected": int(rejected_is_cut.sum()),
            "pairs": int(is_cut.sum()),
            "rows": _first_rows(is_cut, rows),
        },
        "max_length_keeping_99": int(whole_lengths[-1 - len(whole_lengths) // 100]),  # of all pairs
        "longer_chosen": float(chosen_is_longer.sum() / shares_of),
        "pick_longer_accuracy": float((chosen_is_longer.sum() + equally_long.sum() / 2) / shares_of),
        "border": {
            "count": int(has_border.sum()),
            "rows": _first_rows(has_border, rows),
            "example": border_example,
        },
        "start_token": _start_token(kept.start_tokens, rows, adds_start_token),
        "lost_text": {
            "count": int(loses_text.sum()),
            "rows": _first_rows(loses_text, rows),
            "example": lost_example,
        },
        "special_tokens": {
            "count": int(has_control_token.sum()),
            "rows": _first_rows(has_control_token, rows),
        },
        "end_token": {
            "missing": int(misses_end.sum()),
            "repeated": int(repeats_end.sum()),
            "pairs": int((misses_end | repeats_end).sum()),
            "rows": _first_rows(misses_end | repeats_end, rows),
        },
        **costs(kept.prompt_tokens, kept.chosen_tokens, kept.rejected_tokens, micro_batch_size, max_length, seed),
    }


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    """Lengths that are reached, not values between two of them."""
    p50, p95, p99, longest = np.percentile(lengths, (50, 95, 99, 100), method="inverted_cdf")
    return {"p50": int(p50), "p95": int(p95), "p99": int(p99), "max": int(longest)}


def _first_rows(flags: np.ndarray, rows: Sequence[str]) -> list[str]:
    """The names of the first three rows that have the flag."""
    return [rows[int(pair)] for pair in np.flatnonzero(flags)[:3]]


def _start_token(start_tokens: np.ndarray, rows: Sequence[str], adds_start_token: bool | None) -> dict[str, Any]:
    """How many pairs start with no, one and more start tokens; nothing where the tokenizer has none."""
    if adds_start_token is None:
        return {"none": None, "one": None, "doubled": None, "rows": None, "wanted": False}
    return {
        "none": int((start_tokens == 0).sum()),
        "one": int((start_tokens == 1).sum()),
        "doubled": int((start_tokens > 1).sum()),
        "rows": _first_rows(start_tokens > 1, rows),
        "wanted": adds_start_token,
    }


def costs(
    prompt: np.ndarray,
    chosen: np.ndarray,
    rejected: np.ndarray,
    micro_batch_size: int,
    max_length: int | None,
    seed: int,
) -> dict[str, int]:
    """Tokens of an epoch after truncation, from arrays of lengths.

    `padded_tokens`: as TRL reads them, two rows a pair, each as long as the longest of its random micro-batch;
    `real_tokens`: without padding; `shared_tokens`: with a pair's prompt read once.
    """
    limit = max_length or NO_LIMIT
    chosen_row = np.minimum(prompt + chosen, limit)
    rejected_row = np.minimum(prompt + rejected, limit)
    real_tokens = int(chosen_row.sum() + rejected_row.sum())
    prompt_tokens = int(np.minimum(prompt, limit).sum())

    padded_tokens = 0
    if len(prompt):
        longer_row = np.random.default_rng(seed).permutation(np.maximum(chosen_row, rejected_row))
        batch_starts = np.arange(0, len(prompt), micro_batch_size)
        pairs_of_batch = np.diff(batch_starts, append=len(prompt))
        longest_of_batch = np.maximum.reduceat(longer_row, batch_starts)
        padded_tokens = int(2 * longest_of_batch @ pairs_of_batch)

    return {
        "padded_tokens": padded_tokens,
        "real_tokens": real_tokens,
        "shared_tokens": real_tokens - prompt_tokens,
    }


# ---------------------------------------------------------------------------------------------- what it means for a run


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
                "weighted. Choose another loss, such as 'sigmoid', or leave the column out.",
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
    findings = []
    pairs = report.get("near_duplicates", {"count": 0})
    if pairs["count"]:
        amount = _of_pairs(pairs["count"], report["train"]["kept"], pairs["rows"], "train pairs")
        what = f"{amount} differ from an earlier one in case, white space and punctuation alone."
        level = _level(pairs["count"], report["train"]["kept"], warn_above=NEAR_ABOVE, fail_above=1)
        advice = "They count twice in each epoch: keep one of each."
        findings.append(_finding("train near duplicates", Judgement(level, what, advice)))

    prompts = report.get("near_prompts", {"count": 0})
    if prompts["count"]:
        amount = _of_pairs(prompts["count"], report["eval"]["kept"], prompts["rows"], "evaluation pairs")
        what = f"{amount} ask what is trained on, but for case, white space and punctuation."
        level = _level(prompts["count"], report["eval"]["kept"], warn_above=NEAR_ABOVE, fail_above=1)
        advice = "The held-out numbers are too good by that: take these prompts out of one side."
        findings.append(_finding("eval near prompts", Judgement(level, what, advice)))
    return findings


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
    pairs_in_question = _of_pairs(border["count"], part["pairs"], border["rows"])
    return Judgement(
        _level(border["count"], part["pairs"], warn_above=0, fail_above=0.05),
        f"{pairs_in_question} have a prompt whose tokens change when an answer follows.",
        f"Its end {border['example']!r} is left out: answers are learned behind other tokens than they are asked for. "
        "Change data.chat_template_kwargs (thinking?) or data.chat_template; end text prompts before a space.",
    )


def _judge_lost_text(part: dict[str, Any], max_length: int | None) -> Judgement:
    """Text that is in the data and not in what is trained on. White space around a message does not count."""
    lost = part["lost_text"]
    pairs_in_question = _of_pairs(lost["count"], part["pairs"], lost["rows"])
    return Judgement(
        _level(lost["count"], part["pairs"], warn_above=0, fail_above=0.05),
        f"{pairs_in_question} lose text in the chat template.",
        f"It leaves out or changes {lost['example']}. Mend data.chat_template or data.chat_template_kwargs, or set "
        "data.system=merge where it passes over system messages.",
    )


def _judge_special_tokens(part: dict[str, Any], max_length: int | None) -> Judgement:
    special_tokens = part["special_tokens"]
    pairs_in_question = _of_pairs(special_tokens["count"], part["pairs"], special_tokens["rows"])
    return Judgement(
        _level(special_tokens["count"], part["pairs"], warn_above=0, fail_above=0.05),
        f"{pairs_in_question} hold control tokens such as the end token in their texts.",
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
