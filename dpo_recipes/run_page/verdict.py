"""Whether a run worked, in plain words, from its numbers and their intervals alone."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from ..guard.trends import FORGOTTEN, LESS_LIKELY
from .contents import Contents

Judgement = Literal["good", "open", "bad"]  # open: what there is cannot tell


class Remark(NamedTuple):
    """One thing that was found, and how it bears on the whole."""

    judgement: Judgement
    text: str


class Verdict(NamedTuple):
    judgement: Judgement
    headline: str
    remarks: list[Remark]


def verdict(run: Contents) -> Verdict:
    """The whole in one sentence, and the findings behind it, those that matter most first."""
    remarks = [remark for remark in _all_remarks(run) if remark]
    stops = [row for row in run.observations if row["level"] == "stop"]
    if stops and not run.has_trained:
        return Verdict("bad", f"It was stopped at {progress(run)}: see below, why.", remarks)
    if not run.has_trained:
        headline = f"Not finished: it has come to {progress(run)}."
        if any(remark.judgement == "bad" for remark in remarks):
            return Verdict("bad", f"{headline} Something is amiss.", remarks)
        return Verdict("open", headline, remarks)
    if not run.after:
        return Verdict("open", "Training is over, and its held-out pairs have not been measured yet.", remarks)

    accuracy = _accuracy(run) or Remark("open", "")
    others = [remark.judgement for remark in remarks if remark != accuracy]
    if accuracy.judgement == "bad":
        return Verdict("bad", "It did not work: held-out pairs are ranked against their labels.", remarks)
    answers = _answers(run)
    if answers is not None and answers.judgement == "bad":
        return Verdict("bad", "It did not work: its answers have become worse.", remarks)
    if accuracy.judgement == "open" and "bad" in others:
        return Verdict("bad", "It did not work: nothing was learned that shows, and something is amiss.", remarks)
    if accuracy.judgement == "open":
        return Verdict("open", "It cannot be told whether it worked.", remarks)
    if answers is not None and answers.judgement == "open":
        return Verdict("open", "It ranks pairs as they are labelled; that it answers better does not show.", remarks)
    if "bad" in others:
        return Verdict("open", "It has learned the preferences, and something is amiss.", remarks)
    return Verdict("good", "It worked: it ranks pairs that it has never seen as they are labelled.", remarks)


def _all_remarks(run: Contents) -> tuple[Remark | None, ...]:
    return _accuracy(run), _answers(run), _chosen_side(run), _unrelated(run), _endings(run), _warnings(run)


def progress(run: Contents) -> str:
    """How far training has come, such as `step 40 of 219`."""
    if not run.steps:
        return "its first step"
    last = run.steps[-1]
    words = f"step {last['step']:,}"
    total = steps_in_all(run)
    return f"{words} of {total:,}" if total else words


def steps_in_all(run: Contents) -> int | None:
    """The steps of the whole run, from its options or from how much of an epoch a step is; None where not known."""
    steps = run.trl.get("max_steps", -1)
    if steps > 0:
        return steps
    epochs = run.trl.get("num_train_epochs")
    last = run.steps[-1] if run.steps else {}
    if not epochs or not last.get("epoch"):
        return None
    return round(last["step"] * epochs / last["epoch"])


def _accuracy(run: Contents) -> Remark | None:
    """Held-out pairs ranked as labelled, and whether that is more than before."""
    interval = run.after.get("rewards/accuracies_interval")
    if not interval or None in interval:
        return None
    low, high = interval
    accuracy, pairs = run.after["rewards/accuracies"], run.after["pairs"]
    before = run.before.get("rewards/accuracies", 0.5)
    words = (
        f"{accuracy:.1%} of {pairs:,} held-out pairs are ranked as labelled (95 % interval {low:.1%} to {high:.1%}); "
        f"before training it was {before:.1%}."
    )
    if high < 0.5:
        return Remark("bad", f"{words} Are the labels the right way round?")
    if low <= 0.5:
        return Remark("open", f"{words} The interval holds 50 %, which a coin has.")
    if low <= before:
        return Remark("open", f"{words} The interval holds what it was before.")
    return Remark("good", words)


def _answers(run: Contents) -> Remark | None:
    """Sampled answers against those of the reference, where the recipe has a reward."""
    win_rate, reward = run.after.get("win_rate"), run.after.get("reward")
    if win_rate is None or reward is None:
        return None
    error = run.after.get("win_rate_stderr") or 0.0
    reward_before = run.before.get("reward", 0.0)
    reward_error = math.hypot(run.before.get("reward_stderr") or 0.0, run.after.get("reward_stderr") or 0.0)
    words = (
        f"Its sampled answers win {win_rate:.1%} (+- {2 * error:.1%}) of their comparisons with the reference's; their "
        f"mean reward is {reward:+.3f} and was {reward_before:+.3f}."
    )
    if win_rate + 2 * error < 0.5 or reward + 2 * reward_error < reward_before:
        return Remark("bad", f"{words} They have become worse: the pairs do not reward what the reward does.")
    if win_rate - 2 * error <= 0.5 or reward - 2 * reward_error <= reward_before:
        return Remark("open", f"{words} That they are better does not show.")
    return Remark("good", words)


def _chosen_side(run: Contents) -> Remark | None:
    """Whether the policy still gives the chosen answers."""
    change = run.after.get("logps/chosen_change_per_token")
    if change is None:
        return None
    words = f"The chosen answers have changed by {change:+.3f} nats per token"
    if change > -LESS_LIKELY:
        return Remark("good", f"{words}: they are about as likely as they were, or more so.")
    if change > -FORGOTTEN:
        return Remark("good", f"{words}: they have become a little less likely, which is usual for DPO.")
    return Remark("bad", f"{words}: they are being forgotten. sft_weight=0.1 or a higher beta would hold them.")


FEWER = 0.02  # of the tokens of unrelated text; where hardly any were predicted before, nothing is to be lost


def _unrelated(run: Contents) -> Remark | None:
    """Whether the policy has changed where it was not taught to."""
    moved, limit = run.after.get("forgetting/kl_per_token"), run.value("forgetting_limit")
    if moved is not None and limit is not None and moved > limit:
        return Remark("bad", f"On unrelated text it has moved by {moved:.3f} nats per token; {limit:g} was allowed.")
    known, change = run.before.get("forgetting/token_accuracy"), run.after.get("forgetting/token_accuracy_change")
    if known is None or change is None or known < 0.1:
        return None
    error = run.after.get("forgetting/token_accuracy_change_stderr") or 0.0
    if change > -FEWER or change > -2 * error:
        return None
    return Remark(
        "bad", f"Of unrelated text it predicts {known + change:.1%} of the tokens, and predicted {known:.1%}."
    )


MORE = 0.05  # of all answers, or of their 4-grams


def _endings(run: Contents) -> Remark | None:
    """Whether answers still come to their end, and do not go round in circles."""
    worse = []
    for name, words in (("answers/capped", "cut at the cap"), ("answers/repeated_4grams", "repeated 4-grams")):
        before, after = run.before.get(name), run.after.get(name)
        if before is not None and after is not None and after > before + MORE:
            worse.append(f"{words} {before:.0%} before, {after:.0%} after")
    if not worse:
        return None
    return Remark("bad", f"Its answers have become endless or repetitive: {'; '.join(worse)}.")


def _warnings(run: Contents) -> Remark | None:
    """What the rules of the guard have warned of while training; the page tells each in full."""
    first_steps: dict[str, int] = {}
    for row in run.observations:
        if row["level"] == "warning":
            first_steps.setdefault(row["rule"], row["step"])
    if not first_steps:
        return None
    rules = [f"{rule} (from step {step:,})" for rule, step in first_steps.items()]
    return Remark("bad", f"While it trained, the guard warned of {', '.join(rules)}.")
