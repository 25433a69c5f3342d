"""What the log of a run tells while it goes on: rules told in words, each a pure function of the rows so far.

A rule gets the rows of the log, the oldest first, as metrics.jsonl has them, and what is known of the run. It returns
a `Sign`, or None where there is nothing to say. Numbers named `window/...` are of the last pairs (last_pairs.py).
Each threshold stands here with its source, or with what was measured for it.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Row = Mapping[str, Any]
Rows = Sequence[Row]
Level = Literal["note", "warning", "stop"]


@dataclass(frozen=True, kw_only=True)
class KnownOfRun:
    """What a rule may know of a run beside its log."""

    steps: int  # optimiser steps of the whole run
    pairs_per_step: int
    held_out_pairs: int
    beta: float
    learning_rate: float
    losses: tuple[str, ...]


class Sign(NamedTuple):
    """What a rule has seen, in words; what to do; and how much of it there is, so that it is told again when worse."""

    seen: str
    advice: str
    amount: float = 1.0


Rule = Callable[[Rows, KnownOfRun], Sign | None]

# The last pairs must be so many before a rule believes what they say.
ENOUGH_PAIRS = 64

# ---------------------------------------------------------------------------------- the answers of the pairs themselves

# Nats per token that the chosen side may lose; at 0.2 a token is four fifths as likely as it was. Measured in the
# quickstart's world: healthy runs lose at most 0.02, and one that lost 0.2 (beta 0.05) had lost all reward that it had
# gained, and the grammar in three answers of ten.
FORGOTTEN = 0.2
LESS_LIKELY = 0.05  # from here on it is worth a note


def chosen_forgotten(rows: Rows, run: KnownOfRun) -> Sign | None:
    """Likelihood displacement (2410.08847): the chosen answers become unlikely too, and others than both likely."""
    changes = _changes_per_token(rows)
    if changes is None:
        return None
    chosen, rejected = changes
    if chosen > -FORGOTTEN:
        return None
    return Sign(
        f"The chosen answers are being forgotten: over the last pairs they have lost {-chosen:.2f} nats per token "
        f"since the start, so that a token of them is {math.exp(chosen):.2g} times as likely as it was (rejected: "
        f"{rejected:+.2f}). What they lose goes to answers that are in no pair.",
        "Ways out: sft_weight=0.1, which adds the likelihood of the chosen side to the loss; a higher beta; a lower "
        "learning rate.",
        amount=-chosen,
    )


def rejected_falls(rows: Rows, run: KnownOfRun) -> Sign | None:
    """The usual course of DPO after supervised training: both sides fall, and the rejected one falls faster."""
    changes = _changes_per_token(rows)
    if changes is None:
        return None
    chosen, rejected = changes
    if not -FORGOTTEN < chosen <= -LESS_LIKELY or rejected >= chosen:
        return None
    return Sign(
        f"The margin grows only because the rejected answers fall faster ({rejected:+.2f} nats per token since the "
        f"start) than the chosen ones ({chosen:+.2f}). That is usual for DPO, whose loss sees the difference alone.",
        f"Nothing is to be done unless the chosen answers lose more than {FORGOTTEN:g}; sft_weight=0.1 would hold "
        "them.",
    )


def _changes_per_token(rows: Rows) -> tuple[float, float] | None:
    """Change of chosen and rejected since the start, nats per token; None where it is unknown, or of too few pairs."""
    row = rows[-1]
    if row.get("window/pairs", 0) < ENOUGH_PAIRS or "window/chosen_change_per_token" not in row:
        return None
    return row["window/chosen_change_per_token"], row["window/rejected_change_per_token"]


# ----------------------------------------------------------------------------------------------------- margins and beta

# Nats per token by which a side, or the difference of the two, may change. Measured in the quickstart's world: healthy
# runs change by 0.14 at most; from 1 on (beta 0.001) no answer was left in the grammar, at a KL of 560 nats.
FAR = 1.0
# Reward margin at which a logistic loss has nothing left to teach: its gradient is sigmoid(-10), 0.005 % of the whole.
LEARNED_BY_HEART = 10.0


def policy_runs_away(rows: Rows, run: KnownOfRun) -> Sign | None:
    """The policy leaves its reference without a bound: a beta too small to hold it, or a learning rate too high."""
    changes = _changes_per_token(rows)
    if changes is None:
        return None
    chosen, rejected = changes
    farthest = max(abs(chosen), abs(rejected), abs(chosen - rejected))
    allowed = FAR
    if "ipo" in run.losses:
        allowed = max(FAR, 1 / run.beta)  # twice the difference per token that IPO aims at, 1 / (2 beta)
    if farthest <= allowed:
        return None
    return Sign(
        f"The policy runs away from its reference: since the start the chosen answers have changed by {chosen:+.2f} "
        f"nats per token, the rejected ones by {rejected:+.2f}. So far away a policy loses its language.",
        f"Ways out: a higher beta (it is {run.beta:g}; published ones are 0.01 to 5), or a lower learning rate (it is "
        f"{run.learning_rate:g}).",
        amount=farthest,
    )


def margin_too_wide(rows: Rows, run: KnownOfRun) -> Sign | None:
    """The margins grow without bound although the pairs have nothing left to teach."""
    row = rows[-1]
    margin = row.get("window/margins", 0.0)
    if row.get("window/pairs", 0) < ENOUGH_PAIRS or margin <= LEARNED_BY_HEART:
        return None
    return Sign(
        f"The mean reward margin of the last pairs is {margin:.1f}: they are told apart so well that they teach "
        "nothing more, and only the distance from the reference still grows.",
        "Ways out: fewer epochs, or a lower learning rate.",
        amount=margin,
    )


def no_movement(rows: Rows, run: KnownOfRun) -> Sign | None:
    """Half of the run is over and the policy is still its reference, up to what is rounding in 32 bit."""
    row = rows[-1]
    changes = _changes_per_token(rows)
    if changes is None or row["step"] < run.steps / 2:
        return None
    largest = max(abs(change) for change in changes)
    if largest > 1e-3:  # nats per token, what two passes of the same weights may differ by (start.py)
        return None
    return Sign(
        f"After {row['step']:,} of {run.steps:,} steps the policy is still its reference: over the last pairs the two "
        f"differ by {largest:.1g} nats per token.",
        f"Ways out: a higher learning rate (it is {run.learning_rate:g}; adapters are trained at 5e-6 and up), more "
        "steps, or an adapter on more modules (adapter.target_modules).",
    )


# ------------------------------------------------------------------------------------------------------------- accuracy


def accuracy_too_early(rows: Rows, run: KnownOfRun) -> Sign | None:
    """Pairs told apart almost without error before the policy can have learned what people prefer."""
    row = rows[-1]
    seen_pairs = row["step"] * run.pairs_per_step
    is_early = row["step"] <= run.steps / 10 or seen_pairs <= 128
    if not is_early or row.get("window/pairs", 0) < ENOUGH_PAIRS or row["window/accuracies"] <= 0.95:
        return None
    return Sign(
        f"After {row['step']:,} steps {row['window/accuracies']:.0%} of the last pairs are ranked as labelled. Human "
        "preferences are not learned so soon.",
        "Suspects: a side that its length or form gives away (`dpo-recipes check` counts both, `dpo-recipes preview` "
        "shows pairs), pairs that are all alike, a reference that is not the start, a learning rate far too high.",
    )


def length_decides(rows: Rows, run: KnownOfRun) -> Sign | None:
    """Where the chosen side is the longer it is ranked first, and where it is the shorter it is ranked last."""
    row = rows[-1]
    if min(row.get("window/pairs_chosen_longer", 0), row.get("window/pairs_chosen_shorter", 0)) < ENOUGH_PAIRS:
        return None
    longer, shorter = row["window/accuracies_chosen_longer"], row["window/accuracies_chosen_shorter"]
    longer_error = 2 * _standard_error(0.5, row["window/pairs_chosen_longer"])
    shorter_error = 2 * _standard_error(0.5, row["window/pairs_chosen_shorter"])
    prefers_longer = longer > 0.5 + longer_error and shorter < 0.5 - shorter_error
    prefers_shorter = shorter > 0.5 + shorter_error and longer < 0.5 - longer_error
    if not prefers_longer and not prefers_shorter:
        return None
    learned = "longer" if prefers_longer else "shorter"
    return Sign(
        f"The policy learns to prefer the {learned} answer: of the last pairs it ranks {longer:.0%} right where the "
        f"chosen side is the longer, and {shorter:.0%} where it is the shorter.",
        "Ways out: loss='sigmoid_norm' (per token; its beta is about 5), trl.ld_alpha=0.5, or pairs whose sides are of "
        "like length.",
        amount=abs(longer - shorter),
    )


def held_out_at_chance(rows: Rows, run: KnownOfRun) -> Sign | None:
    """From half of the run on: the held-out accuracy cannot be told from a coin's."""
    row = rows[-1]
    accuracy = row.get("eval_rewards/accuracies")
    if accuracy is None or not row["step"] or row["step"] < run.steps / 2:
        return None
    error = _standard_error(0.5, run.held_out_pairs)
    if accuracy > 0.5 + 2 * error:
        return None
    return Sign(
        f"{accuracy:.1%} of {run.held_out_pairs:,} held-out pairs are ranked as labelled, which cannot be told from a "
        f"coin's 50 % (+- {2 * error:.1%}).",
        "Either nothing was learned (a longer run, a higher learning rate, labels that agree with each other), or the "
        "held-out pairs are too few to show it (data.eval).",
    )


# ----------------------------------------------------------------------------------- what is learned, and what by heart

# Of accuracy, between the pairs trained on last and those held out. Measured in the quickstart's world: 0.02 at most in
# healthy runs, 0.14 after ten epochs of 160 pairs.
GAP = 0.1
ERRORS = 3.0  # and in standard errors, so that few held-out pairs raise no alarm


def over_fitting(rows: Rows, run: KnownOfRun) -> Sign | None:
    """The pairs of training are ranked better and better, those held out are not."""
    row = rows[-1]
    if "eval_loss" not in row or not row["step"]:
        return None
    advice = "Ways out: fewer epochs or steps, a lower learning rate, a smaller adapter, or more pairs."

    evaluations = [other for other in rows if "eval_loss" in other and other["step"] <= row["step"]]
    lowest = min(evaluations, key=_eval_loss)
    losses = [lowest["eval_loss"], row["eval_loss"]]
    rises = losses[1] > losses[0] + 0.1 * abs(losses[0])
    if rises:
        where = "before training" if not lowest["step"] else f"at step {lowest['step']:,}"
        return Sign(
            f"The held-out loss is {losses[1]:.4f} and was {losses[0]:.4f} {where}: the policy learns its pairs by "
            "heart.",
            advice,
            amount=losses[1] - losses[0],
        )

    trained = _latest(rows, "window/accuracies")
    if trained is None or trained["window/pairs"] < ENOUGH_PAIRS:
        return None
    gap = trained["window/accuracies"] - row["eval_rewards/accuracies"]
    error = math.hypot(
        _standard_error(trained["window/accuracies"], trained["window/pairs"]),
        _standard_error(row["eval_rewards/accuracies"], run.held_out_pairs),
    )
    if gap < GAP or gap < ERRORS * error:
        return None
    return Sign(
        f"{trained['window/accuracies']:.0%} of the last pairs trained on are ranked as labelled, and "
        f"{row['eval_rewards/accuracies']:.0%} of those held out: the policy learns its pairs by heart.",
        advice,
        amount=gap,
    )


def epoch_jump(rows: Rows, run: KnownOfRun) -> Sign | None:
    """The loss falls by a step where the pairs come for the second time: what was seen once is known by heart."""
    trained = [row for row in rows[-1000:] if "loss" in row and "epoch" in row]
    if not trained or trained[-1] is not rows[-1]:
        return None
    epoch = math.ceil(trained[-1]["epoch"]) - 1  # epochs that are over
    count = min(16, _rows_per_epoch(trained) // 2)
    after = [row["loss"] for row in trained if row["epoch"] > epoch]
    before = [row["loss"] for row in trained if epoch - 1 < row["epoch"] <= epoch]
    if epoch < 1 or count < 4 or len(after) != count or len(before) < 2 * count:
        return None

    earlier, later = before[-2 * count : -count], before[-count:]
    usual_fall = max(0.0, statistics.fmean(earlier) - statistics.fmean(later))  # over as many steps of one epoch
    jump = statistics.fmean(later) - statistics.fmean(after) - usual_fall
    variance = statistics.variance(earlier) + 4 * statistics.variance(later) + statistics.variance(after)
    if jump < 0.2 * abs(statistics.fmean(later)) or jump < ERRORS * math.sqrt(variance / count):
        return None
    return Sign(
        f"The loss fell from {statistics.fmean(later):.3g} to {statistics.fmean(after):.3g} where epoch {epoch + 1} "
        "began: pairs that were seen before are known by heart.",
        "Look at the held-out pairs (trl.eval_strategy=epoch), not at the training loss; one epoch is usual.",
        amount=float(epoch),
    )


def _rows_per_epoch(rows: Rows) -> int:
    """How many rows of training an epoch has."""
    if len(rows) < 2 or rows[-1]["epoch"] <= rows[0]["epoch"]:
        return 0
    return round((len(rows) - 1) / (rows[-1]["epoch"] - rows[0]["epoch"]))


def _eval_loss(row: Row) -> float:
    return row["eval_loss"]


# ------------------------------------------------------------------------------------------------ gradients and entropy


def gradient_spikes(rows: Rows, run: KnownOfRun) -> Sign | None:
    """Some steps are made by gradients far beyond the others', of which clipping leaves only the direction."""
    recent = [row["grad_norm"] for row in rows[-60:] if math.isfinite(row.get("grad_norm", math.nan))][-50:]
    if len(recent) < 30 or "grad_norm" not in rows[-1]:
        return None
    usual = statistics.median(recent)
    # A batch of hard pairs among learned ones reached 18 times the median in a healthy run, once in 219 steps.
    spikes = [norm for norm in recent if norm > 20 * usual]
    if len(spikes) < 3 or not usual:
        return None
    return Sign(
        f"{len(spikes)} of the last {len(recent)} gradient norms are over 20 times the usual {usual:.2g}, the largest "
        f"{max(spikes):.2g}.",
        "Ways out: a lower learning rate, a longer warm-up (trl.warmup_steps=0.1), more pairs a step "
        "(global_batch_size), or a look at the longest pairs (data.drop_truncated, max_length).",
        amount=max(spikes) / usual,
    )


LEFT_OF_ENTROPY = 0.5  # the share of it that must be left; healthy runs of the quickstart keep four fifths


def entropy_collapse(rows: Rows, run: KnownOfRun) -> Sign | None:
    """The next-token distributions along the pairs become narrow: the policy says one thing whatever it is asked."""
    if "entropy" not in rows[-1]:
        return None
    count = max(1, math.ceil(ENOUGH_PAIRS / run.pairs_per_step))
    last = [row["entropy"] for row in rows[-2 * count :] if "entropy" in row][-count:]
    first = [row["entropy"] for row in rows[: 2 * count + 1] if "entropy" in row][:count]
    if len(rows) < 2 * count + 1 or statistics.fmean(last) > LEFT_OF_ENTROPY * statistics.fmean(first):
        return None
    return Sign(
        f"The entropy of the next token has fallen from {statistics.fmean(first):.3g} to {statistics.fmean(last):.3g} "
        "nats: the policy grows sure of itself along every answer, liked or not, and its answers will be all alike.",
        "Ways out: a higher beta, a lower learning rate, fewer steps.",
        amount=statistics.fmean(first) / max(statistics.fmean(last), 1e-9),
    )


# ---------------------------------------------------------------------------------------------------------- all of them


def _latest(rows: Rows, name: str) -> Row | None:
    for row in reversed(rows):
        if name in row:
            return row
    return None


def _standard_error(share: float, count: float) -> float:
    """Of a share of so many pairs."""
    return math.sqrt(max(share * (1 - share), 0.0) / max(count, 1))


# Name, as in a recipe's `rules` -> the level at which it is told, and the rule.
TRENDS: dict[str, tuple[Level, Rule]] = {
    "chosen_forgotten": ("warning", chosen_forgotten),
    "rejected_falls": ("note", rejected_falls),
    "policy_runs_away": ("warning", policy_runs_away),
    "margin_too_wide": ("warning", margin_too_wide),
    "no_movement": ("warning", no_movement),
    "accuracy_too_early": ("warning", accuracy_too_early),
    "length_decides": ("warning", length_decides),
    "held_out_at_chance": ("note", held_out_at_chance),
    "over_fitting": ("warning", over_fitting),
    "epoch_jump": ("warning", epoch_jump),
    "gradient_spikes": ("warning", gradient_spikes),
    "entropy_collapse": ("warning", entropy_collapse),
}
