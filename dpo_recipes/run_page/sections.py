"""The sections of the page but its charts, one function each: what they show of one run, or of several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..evaluation.closing_table import compared, difference_rows
from ..evaluation.held_out import METRICS
from ..runs.causes import causes
from ..runs.folder import Run
from ..runs.model_card import reading_in_words
from ..terminal import data_rows
from .contents import Contents, labels
from .curves import DIRECTIONS
from .text import Html, element, escape, joined, marked, plain, table
from .verdict import progress, verdict

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
    objective = f"loss {plain(values('loss'))}, beta {plain(values('beta'))}"
    if values("sft_weight"):
        objective += f", and the likelihood of the chosen answers at weight {plain(values('sft_weight'))}"
    facts.append(("Objective", objective))
    training = f"learning rate {plain(values('learning_rate'))}, {plain(values('global_batch_size'))} pairs a step"
    facts.append(("Training", f"{training}, {progress(run)}"))
    return table(facts, css="facts")


def _data_in_words(run: Contents) -> str:
    kept = [f"{run.data[split]['kept']:,} {words}" for split, words in _SPLITS if "kept" in run.data.get(split, {})]
    name = str(run.value("data.path") or plain(run.value("data.mix"))).replace("{prepared}/", "its own ")
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
    rows = [(key, plain(entry["value"]), _origin(entry)) for key, entry in run.recipe.items()]
    given = [row for row in rows if row[2] != "default"]
    defaults = [row for row in rows if row[2] == "default"]
    header = ("field", "value", "origin")
    opened = element("details", joined([element("summary", f"{len(defaults)} defaults"), table(defaults, header)]))
    return joined([table(given, header), opened if defaults else ""])


def _origin(entry: dict[str, Any]) -> str:
    """Where a value came from, and of a chosen one why."""
    reason = entry.get("reason")
    return f"{entry['origin']}: {reason}" if reason else entry["origin"]


def why_they_may_differ(runs: Sequence[Contents]) -> Html:
    """In what the runs differ, what changes a result the most first; nothing until each has begun."""
    if not all(run.data and run.reference and run.environment for run in runs):
        return Html("")
    found = causes([Run(run.path) for run in runs])
    if not found:
        return element("p", "Their folders differ in nothing that could change a result.")
    rows = [(cause.name, cause.kind, *(plain(value) for value in cause.values)) for cause in found]
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


def versions(run: Contents) -> Html:
    """Packages and machine."""
    rows = []
    for key, value in run.environment.items():
        if isinstance(value, dict):
            rows += [(name, plain(inner)) for name, inner in value.items()]
        else:
            rows.append((key.replace("_", " "), plain(value)))
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
