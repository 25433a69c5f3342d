"""The sections of the page, one function each: what they show of one run, or of several laid over each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..evaluation.held_out import METRICS, compared, difference_rows
from ..runs.causes import causes
from ..runs.folder import Run
from ..runs.model_card import reading_in_words
from ..terminal import data_rows
from .charts import COLOURS, Line, Point, Spot, chart, colour_of, scatter
from .contents import Contents
from .text import Html, element, escape, joined, marked, table
from .verdict import progress, verdict

BY_NAME = {metric.name: metric for metric in METRICS}
DIRECTIONS = {"up": "It should rise.", "down": "It should fall.", "either": "It may go either way."}
LONG = 600  # characters of a prompt that are shown at once
AT_ONCE = 12  # answers of both models


def section(title: str, *content: Any) -> Html:
    """A section with its title; nothing where it has no content."""
    inside = joined(content)
    if not inside:
        return Html("")
    return element("section", joined([element("h2", title), inside]))


# ----------------------------------------------------------------------------------------------------- what it is about


def subject(run: Contents) -> Html:
    """What was trained, and what it is compared with."""
    values = run.value
    facts = []
    if run.reference:
        facts.append(("Policy", f"{run.reference['policy']}"))
        facts.append(("Reference", f"{run.reference['reference']}"))
    facts.append(("Data", _data_in_words(run)))
    facts.append(("Objective", f"loss {_plain(values('loss'))}, beta {_plain(values('beta'))}"))
    training = f"learning rate {_plain(values('learning_rate'))}, {_plain(values('global_batch_size'))} pairs a step"
    facts.append(("Training", f"{training}, {progress(run)}"))
    return table(facts, css="facts")


def _data_in_words(run: Contents) -> str:
    kept = [f"{run.data[split]['kept']:,} {words}" for split, words in _SPLITS if "kept" in run.data.get(split, {})]
    name = str(run.value("data.path") or _plain(run.value("data.mix"))).replace("{prepared}/", "its own ")
    return f"{name}: {', '.join(kept)}" if kept else name


_SPLITS = (("train", "pairs to train on"), ("eval", "held out"))


def judged(run: Contents) -> Html:
    """The verdict in plain words, and what it rests on."""
    return joined([_headline(run), _remarks(run)])


def judged_in_short(run: Contents) -> Html:
    """The verdict of one run of several; what it rests on, and what was trained, to be opened."""
    summary = element("summary", "What that rests on, and what was trained")
    return joined([_headline(run), element("details", joined([summary, _remarks(run), subject(run)]))])


def _headline(run: Contents) -> Html:
    whole = verdict(run)
    return element("p", whole.headline, f"headline {whole.judgement}")


def _remarks(run: Contents) -> Html:
    items = [element("li", remark.text, remark.judgement) for remark in verdict(run).remarks]
    return element("ul", joined(items), "remarks") if items else Html("")


def observed(run: Contents) -> Html:
    """What the rules of the guard have told while training, with what to do."""
    items = []
    for row in run.observations:
        head = f"{row['level']} at step {row['step']:,}, {row['rule']}: "
        items.append(element("li", joined([element("b", head), f"{row['seen']} {row['advice']}"]), row["level"]))
    return element("ul", joined(items), "observations") if items else Html("")


# ---------------------------------------------------------------------------------------------------------- the numbers


def numbers(run: Contents) -> Html:
    """The closing table, and what each of its rows means."""
    rows = compared(run.before, run.after) if run.after else []
    if not rows:
        return Html("")
    header = ("", "before", "after", "95 % interval or s.e.")
    shown = table([tuple(row)[:4] for row in rows], header, "numbers")
    return joined([shown, _explained([row.words for row in rows])])


def _explained(words: Sequence[str]) -> Html:
    """What the rows of a table mean and when to worry, to be opened."""
    metrics = [metric for metric in METRICS if metric.words in words]
    rows = [(metric.words, metric.meaning, DIRECTIONS[metric.direction], metric.alarm) for metric in metrics]
    header = ("", "what it is", "direction", "when to worry")
    summary = element("summary", "What these numbers mean, and when to worry")
    return element("details", joined([summary, table(rows, header, "meanings")]))


def numbers_of_several(runs: Sequence[Contents]) -> Html:
    """A row for each number, a column for each run: after training, with interval or error."""
    columns = [{row.words: row for row in compared(run.before, run.after)} if run.after else {} for run in runs]
    known = {words for column in columns for words in column}
    in_order = [metric.words for metric in METRICS if metric.words in known]
    rows = []
    for words in dict.fromkeys([*in_order, *sorted(known)]):  # a recipe's own measures come last
        cells = []
        for column in columns:
            row = column.get(words)
            cells.append(joined([row.after, " ", element("small", row.spread)]) if row else "")
        rows.append((words, *cells))
    if not rows:
        return Html("")
    return joined([_wide(table(rows, ("", *labels(runs)), "numbers")), _explained(in_order)])


# ----------------------------------------------------------------------------------------------------------- the curves


class Curve(NamedTuple):
    """A chart: whose row of METRICS explains it, and the numbers of the log that it draws with their names."""

    metric: str
    lines: tuple[tuple[str, str], ...]  # (name in the log, words); those of an evaluation begin with eval_
    title: str = ""  # where the metric's own words do not tell of all lines
    instead_of: str = ""  # drawn only where the log has no such number


CURVES = (
    Curve("loss", (("loss", "each step"), ("eval_loss", "held out"))),
    Curve("rewards/accuracies", (("window/accuracies", "last 256 pairs"), ("eval_rewards/accuracies", "held out"))),
    Curve("rewards/margins", (("window/margins", "last 256 pairs"), ("eval_rewards/margins", "held out"))),
    Curve(
        "window/chosen_change_per_token",
        (("window/chosen_change_per_token", "chosen"), ("window/rejected_change_per_token", "rejected")),
        title="change since the start, nats per token",
    ),
    Curve(
        "rewards/chosen",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
        title="rewards of both sides",
        instead_of="window/chosen_change_per_token",
    ),
    Curve(
        "window/accuracies_chosen_longer",
        (
            ("window/accuracies_chosen_longer", "chosen is longer"),
            ("window/accuracies_chosen_shorter", "chosen is shorter"),
        ),
        title="ranked right, by which side is longer",
    ),
    Curve("mean_token_accuracy", (("mean_token_accuracy", "each step"), ("eval_mean_token_accuracy", "held out"))),
    Curve("entropy", (("entropy", "each step"), ("eval_entropy", "held out"))),
    Curve("grad_norm", (("grad_norm", "each step"),)),
)


def curves(run: Contents) -> Html:
    """The course of training, each chart with its meaning, its direction and its alarm."""
    marks = sorted({row["step"] for row in run.observations})
    figures = []
    for curve in _drawn([run]):
        lines = [_line(run, name, words, colour) for colour, (name, words) in enumerate(curve.lines)]
        figures.append(_figure(curve, lines, marks))
    return _grid(figures)


def curves_of_several(runs: Sequence[Contents]) -> Html:
    """The same numbers of several runs in one chart, the first of each chart's lines that the runs have."""
    names = labels(runs)
    figures = []
    for curve in _drawn(runs):
        for name, words in curve.lines:
            lines = [_line(run, name, names[number], number) for number, run in enumerate(runs)]
            figures.append(_figure(curve, lines, (), f": {words}"))
    return _grid(figures)


def frontier(runs: Sequence[Contents]) -> Html:
    """What each run has won in reward and paid for in KL, beside the reference and the best possible at that KL."""
    spots: list[Spot] = []
    keys: list[Html] = []
    for number, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
        kl, reward = run.after.get("kl"), run.after.get("reward")
        if kl is None or reward is None:
            continue
        spots.append(Spot(name, kl, reward, number))
        keys.append(element("span", name, f"key c{number % COLOURS}"))
        best = run.after.get("best_reward_at_kl")
        if best is not None:
            spots.append(Spot(f"best possible at the KL of {name}", kl, best, number, hollow=True))
    if len(keys) < 2:
        return Html("")

    title = "Mean reward of sampled answers over KL to the reference"
    drawn = scatter(title, spots, "KL to the reference, nats:")
    meaning = (
        "Up is better, right is further from the reference. A ring is the best that any policy could do at that KL, "
        "estimated from the reference's own answers."
    )
    content = joined([element("h3", title), Html(drawn), element("p", joined(keys), "keys"), element("p", meaning)])
    return _grid([element("figure", content)])


def _drawn(runs: Sequence[Contents]) -> list[Curve]:
    """The curves that these runs have numbers for, none of them twice in other units."""
    logged = {name for run in runs for row in run.steps for name in row}
    return [curve for curve in CURVES if not curve.instead_of or curve.instead_of not in logged]


def _line(run: Contents, name: str, words: str, colour: int) -> Line:
    rows = run.evaluations if name.startswith("eval_") else run.steps
    points = [Point(row["step"], row[name]) for row in rows if row.get(name) is not None]
    is_evaluated, is_smooth = name.startswith("eval_"), name.startswith("window/")
    return Line(words, points, colour, dots=is_evaluated, rough=not is_evaluated and not is_smooth)


def _figure(curve: Curve, lines: Sequence[Line], marks: Sequence[int], more: str = "") -> Html:
    metric = BY_NAME[curve.metric]
    title = f"{curve.title or metric.words}{more}"
    drawn = chart(title, lines, marks, percent=metric.form.endswith("%"))
    if not drawn:
        return Html("")
    keys = []
    for line in lines:
        if line.points:
            name = f"{line.name}, and its running mean" if line.rough else line.name
            keys.append(element("span", name, f"key {colour_of(line)}"))
    parts = [
        element("h3", title),
        Html(drawn),
        element("p", joined(keys), "keys"),
        element("p", f"{metric.meaning} {DIRECTIONS[metric.direction]}"),
        element("p", joined([element("b", "Alarm: "), metric.alarm]), "alarm"),
    ]
    return element("figure", joined(parts))


def _grid(figures: Sequence[Html]) -> Html:
    inside = joined(figures)
    return element("div", inside, "charts") if inside else Html("")


# ---------------------------------------------------------------------------------------------------------- the answers


def answers(run: Contents) -> Html:
    """Answers of both to the same prompts, with the words that differ marked; after the first dozen to be opened."""
    shown = [_sample(sample) for sample in run.samples]
    if len(shown) <= AT_ONCE:
        return joined(shown)
    summary = element("summary", f"{len(shown) - AT_ONCE} more")
    return joined([*shown[:AT_ONCE], element("details", joined([summary, *shown[AT_ONCE:]]))])


def _sample(sample: dict[str, Any]) -> Html:
    reference, policy = marked(sample["reference"], sample["policy"])
    parts = [_prompt(sample["prompt"])]
    for who, text in (("reference", reference), ("policy", policy)):
        title = who if sample.get(f"{who}_ended", True) else f"{who}, cut at the cap"
        if f"{who}_reward" in sample:
            title += f", mean reward {sample[f'{who}_reward']:+.2f}"
        if not text:
            text = element("i", "an empty answer")
        parts.append(element("div", joined([element("h4", title), Html(f'<p dir="auto">{text}</p>')]), f"answer {who}"))
    return element("article", joined(parts))


def _prompt(prompt: Any) -> Html:
    """A prompt of text or messages; a long one to be opened."""
    if isinstance(prompt, list):
        texts = [f"{message.get('role', '')}: {_content(message)}" for message in prompt]
        text = "\n\n".join(texts)
    else:
        text = str(prompt)
    if len(text) <= LONG:
        return Html(f'<p class="prompt" dir="auto">{escape(text)}</p>')
    summary = element("summary", f"{text[: LONG // 3]}... ({len(text):,} characters)")
    return element("details", joined([summary, Html(f'<p class="prompt" dir="auto">{escape(text)}</p>')]))


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


# ------------------------------------------------------------------------------------------ data, recipe, versions, TRL


def data_report(run: Contents) -> Html:
    """What was read, kept and dropped, how long it is, and all that data.json holds."""
    if "train" not in run.data or "eval" not in run.data:
        return Html("")
    everything = element("pre", json.dumps(run.data, indent=2, ensure_ascii=False))
    return joined(
        [
            table(data_rows(run.data), ("", "train", "eval"), "numbers"),
            joined(element("p", note) for note in run.data.get("notes", [])),
            element("details", joined([element("summary", "All that was counted"), everything])),
        ]
    )


def recipe_values(run: Contents) -> Html:
    """Every value of the resolved recipe with its origin; those that nobody has set to be opened."""
    rows = [(key, _plain(entry["value"]), entry["origin"]) for key, entry in run.recipe.items()]
    given = [row for row in rows if row[2] != "default"]
    defaults = [row for row in rows if row[2] == "default"]
    header = ("field", "value", "origin")
    opened = element("details", joined([element("summary", f"{len(defaults)} defaults"), table(defaults, header)]))
    return joined([table(given, header), opened if defaults else ""])


def why_they_may_differ(runs: Sequence[Contents]) -> Html:
    """In what the runs differ, what changes a result the most first; nothing until each has begun."""
    if not all(run.data and run.reference and run.environment for run in runs):
        return Html("")
    found = causes([Run(run.path) for run in runs])
    if not found:
        return element("p", "Their folders differ in nothing that could change a result.")
    rows = [(cause.name, cause.kind, *(_plain(value) for value in cause.values)) for cause in found]
    return _wide(table(rows, ("", "what", *labels(runs))))


def against_the_first(runs: Sequence[Contents]) -> Html:
    """By how much each run is above the first, with intervals, on the pairs and prompts that both have."""
    from ..evaluation.comparison import run_differences  # which imports torch

    first, *others = zip(runs, labels(runs), strict=True)
    parts = []
    for run, label in others:
        if not run.after or not first[0].after:
            continue
        differences = run_differences(Run(run.path), Run(first[0].path))
        rows = difference_rows([difference._asdict() for difference in differences])
        if rows:
            parts.append(element("h3", f"{label} minus {first[1]}"))
            parts.append(table(rows, ("", "difference", "95 % interval", "on"), "numbers"))
    return joined(parts)


def _wide(content: Html) -> Html:
    """A column for each run may not fit: then this part of the page scrolls by itself, and not the page."""
    return element("div", content, "wide")


def _differing_keys(runs: Sequence[Contents]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    return [key for key in keys if len({_value(run, key) for run in runs}) > 1]


def _value(run: Contents, key: str) -> str:
    return _plain(run.recipe[key]["value"]) if key in run.recipe else "not set"


def versions(run: Contents) -> Html:
    """Packages and machine."""
    rows = []
    for key, value in run.environment.items():
        if isinstance(value, dict):
            rows += [(name, _plain(inner)) for name, inner in value.items()]
        else:
            rows.append((key.replace("_", " "), _plain(value)))
    return table(rows) if rows else Html("")


def agreement(run: Contents) -> Html:
    """How far reading each pair once was measured to be from TRL's own forward, where the run has it."""
    reading = run.evaluation.get("pair_sharing")
    if not reading:
        return Html("")
    words = f"Pairs were {reading_in_words(reading)}."
    if reading["read_once"]:
        words += (
            f" The batches that were read both ways took {reading['tokens']:,} tokens in place of TRL's "
            f"{reading['padded_tokens']:,}, and differed by {reading['mean_difference']:.1g} nats per token on average."
        )
    return element("p", words)


def labels(runs: Sequence[Contents]) -> list[str]:
    """What tells runs apart: the few values that differ, or else their names."""
    keys = _differing_keys(runs)
    names = [", ".join(f"{key.rpartition('.')[2]} {_value(run, key)}" for key in keys) for run in runs]
    if not keys or len(keys) > 3 or len(set(names)) < len(runs) or max(map(len, names)) > 40:
        return [run.name for run in runs]
    return names


def _plain(value: Any) -> str:
    """A value of a recipe as it is read."""
    if value is None:
        return "none"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)
