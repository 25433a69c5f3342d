"""Which form the first rows of a split have, or an error that lists what they might be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import RecipeError, nearest_name
from .messages import Drop, Row
from .raw_row import explicit_pair
from .readers import FORMATS, PAIR
from .rendered import ADVICE, RENDERED_BEFORE

Pairs = dict[int, Row]  # place in the sample -> the pair that is read there


class OtherRows(NamedTuple):
    """Rows of another kind of training, known by their columns."""

    columns: set[str]
    what: str
    way_out: str


# The first row whose columns are all there is told to the user.
SFT = "one reply to each prompt, as for supervised fine-tuning"
KTO = "single replies with a label, as for KTO"
TAKE_PAIRS = "Take a set with a better and a worse reply to each prompt, in columns prompt, chosen, rejected."
READ_THEM = "Say which is better in data.reader, a function of a row that returns prompt, chosen and rejected."
OTHER_ROWS = (
    OtherRows(
        {"prompt", "response", "helpfulness"},
        "scores of single replies",
        "HelpSteer2's pairs are read with data.data_dir='preference'.",
    ),
    OtherRows({"completion", "label"}, KTO, TAKE_PAIRS),
    OtherRows({"response", "label"}, KTO, TAKE_PAIRS),
    OtherRows({"messages", "label"}, KTO, TAKE_PAIRS),
    OtherRows({"responses"}, "several replies to each prompt", READ_THEM),
    OtherRows({"completions"}, "several replies to each prompt", READ_THEM),
    OtherRows({"response_a", "response_b"}, "two replies, neither chosen nor rejected", READ_THEM),
    OtherRows({"answer_a", "answer_b"}, "two replies, neither chosen nor rejected", READ_THEM),
    OtherRows({"conversation_a", "conversation_b"}, "two conversations, neither chosen nor rejected", READ_THEM),
    OtherRows({"messages"}, SFT, TAKE_PAIRS),
    OtherRows({"conversations"}, SFT, TAKE_PAIRS),
    OtherRows({"prompt", "completion"}, SFT, TAKE_PAIRS),
    OtherRows({"prompt", "response"}, SFT, TAKE_PAIRS),
    OtherRows({"question", "answer"}, SFT, TAKE_PAIRS),
    OtherRows({"instruction", "output"}, SFT, TAKE_PAIRS),
    OtherRows({"instruction", "response"}, SFT, TAKE_PAIRS),
    OtherRows({"input", "output"}, SFT, TAKE_PAIRS),
    OtherRows({"text"}, "plain text, one to a row", TAKE_PAIRS),
)


def choose_format(
    sample: list[Row],
    where: str,
    *,
    named: str | None,
    max_dropped: float,
    may_be_rendered: bool = False,
    row_names: Sequence[str] = (),
) -> str:
    """The form that reads the first rows of a split, or the one that data.format names.

    `row_names`: what a message calls them, where they are not the first of a file.
    A share of `max_dropped` rows may be of another form: they are then dropped and counted, like other defects.
    `may_be_rendered`: text that a chat template has rendered before is accepted.
    Raises RecipeError, which lists the candidates, where no form reads a row or where several read different pairs.
    """
    if not sample:
        raise RecipeError(f"{where} has no rows. Choose a split or a file that has.")
    results: dict[str, list[Row | Drop]] = {}
    for form in [named] if named else FORMATS:
        results[form] = [explicit_pair(row, form, strict=not named, may_be_rendered=may_be_rendered) for row in sample]

    pairs = {form: _pairs(results[form]) for form in results}
    if pairs.get("preference"):  # `text` reads the same strings
        pairs.pop("text", None)

    best = max(pairs, key=lambda form: len(pairs[form]))
    if not pairs[best]:
        drops: dict[str, list[Drop]] = {}
        for form, of_form in results.items():
            drops[form] = [result for result in of_form if isinstance(result, Drop)]
        raise _no_form(sample, where, named, drops, row_names)
    if best == "text" and not named:
        _refuse_a_misspelt_prompt(sample, where)
    _refuse_another_reading(pairs, best, len(sample), where, max_dropped)
    return best


def _pairs(results: list[Row | Drop]) -> Pairs:
    return {place: pair for place, pair in enumerate(results) if not isinstance(pair, Drop)}


# The error where no form reads a row


def _no_form(
    sample: list[Row], where: str, named: str | None, drops: dict[str, list[Drop]], row_names: Sequence[str]
) -> RecipeError:
    """What the rows are instead, or what is wrong: the spelling of columns, their content, or the columns themselves.

    `drops`: form -> why each row of the sample is not read as that form.
    """
    for reasons in drops.values():
        if RENDERED_BEFORE in reasons[0].reason:
            return RecipeError(f"{where}: the first row cannot be used. {reasons[0]}. {ADVICE}")
    columns = list(dict.fromkeys(column for row in sample for column in row))
    form = _nearest_form(columns, drops)
    misspelt = _misspelt(columns, form)
    if misspelt:
        return _wrong_spelling(where, columns, misspelt)
    if not _lacks(drops[form]):
        return _wrong_content(where, form, drops[form], row_names)
    for rows in OTHER_ROWS:
        if rows.columns <= {_plain(column) for column in columns}:
            return RecipeError(f"{where} holds {rows.what}; DPO learns from pairs of replies. {rows.way_out}")
    return _wrong_columns(where, columns, form, named, drops[form])


def _nearest_form(columns: list[str], drops: dict[str, list[Drop]]) -> str:
    """The form that has its required columns and finds no field malformed, or is the nearest to that."""
    present = {_plain(column) for column in columns}

    def likeness(form: str) -> tuple[bool, bool, int]:
        has_columns = not _lacks(drops[form])
        understood = not all(drop.is_malformed for drop in drops[form])
        return has_columns, has_columns and understood, len(FORMATS[form].reads & present)

    return max(drops, key=likeness)


def _lacks(drops: list[Drop]) -> str:
    """The required column that a row lacks, the first of them; "" where the rows have all."""
    return next((drop.missing_column for drop in drops if drop.missing_column), "")


def _plain(column: str) -> str:
    return column.strip().lower()


def _misspelt(columns: list[str], form: str) -> dict[str, str]:
    """Column that the form reads -> how the file spells it; none where a required one is there in no spelling."""
    present = {*columns}
    unread = [column for column in columns if column not in FORMATS[form].reads]
    misspelt: dict[str, str] = {}
    for column in FORMATS[form].optional:
        # Half alike is not enough for a column that may well be missing: "prompt_id" is no prompt.
        spelling = nearest_name(column, map(str.strip, unread), cutoff=0.85)
        if column not in present and spelling is not None:
            misspelt[column] = next(name for name in unread if name.strip() == spelling)

    for column in FORMATS[form].required:
        names = column.split("|")
        if present.intersection(names):
            continue
        spelling = nearest_name(names[0], unread)
        if spelling is None:
            return {}
        misspelt[names[0]] = spelling
    return misspelt


def _wrong_spelling(where: str, columns: list[str], misspelt: dict[str, str]) -> RecipeError:
    written = ", ".join(repr(column) for column in misspelt.values())
    meant = ", ".join(repr(column) for column in misspelt)
    noun = "column" if len(misspelt) == 1 else "columns"
    return RecipeError(
        f"{where}: {noun} {written}: did you mean {meant}? Rename in the file. Its columns: {_listed(columns)}."
    )


def _listed(columns: list[str]) -> str:
    return f"{', '.join(columns[:20]):.300}"


def _wrong_content(where: str, form: str, drops: list[Drop], row_names: Sequence[str]) -> RecipeError:
    """The columns are there: the most frequent reason why no row is a pair, with rows and what was found there."""
    [(reason, count)] = Counter(drop.reason for drop in drops).most_common(1)
    places = [place for place, drop in enumerate(drops) if drop.reason == reason]
    names = [row_names[place] if row_names else str(place) for place in places[:3]]
    first = drops[places[0]]
    found = f": {first.found}" if first.found else ""

    advice = "Correct the rows."
    if first.is_malformed:
        advice = "Correct the rows, rename columns, name data.format or write data.reader."
    return RecipeError(
        f"{where}: 0 of its first {len(drops)} rows can be used, read as {form!r}. "
        f"{reason}: {count} (rows {', '.join(names)} ...{found}). {advice}"
    )


def _wrong_columns(where: str, columns: list[str], form: str, named: str | None, drops: list[Drop]) -> RecipeError:
    """The columns, what the nearest form needs, and all forms."""
    forms = "; ".join(f"{name}: {FORMATS[name].columns}" for name in ([named] if named else FORMATS))
    names_of_csv = " In a csv file line 1 names the columns." if ".csv" in where.lower() else ""
    return RecipeError(
        f"{where} is not {named or 'of a form that is read'}. Its columns: {_listed(columns)}.{names_of_csv} "
        f"Nearest is {form}, which needs {_lacks(drops).replace('|', ' or ')}. "
        f"Rename columns, name data.format or write data.reader. Read are {forms}."
    )


# A form that reads rows, and whether it is the right one


def _refuse_a_misspelt_prompt(sample: list[Row], where: str) -> None:
    """An error where the prompt would be taken from the sides, and stands in a column of nearly its name."""
    columns = list(dict.fromkeys(column for row in sample for column in row))
    spelling = nearest_name("prompt", [column for column in columns if column not in PAIR], cutoff=0.85)
    if spelling is not None and "prompt" not in columns:
        raise _wrong_spelling(where, columns, {"prompt": spelling})


def _refuse_another_reading(pairs: dict[str, Pairs], best: str, rows: int, where: str, max_dropped: float) -> None:
    """An error where another form reads rows, too, that the best form reads otherwise or not at all."""
    for form in pairs:
        differing = [place for place, pair in pairs[form].items() if pair != pairs[best].get(place)]
        if len(differing) > max_dropped * rows:
            counts = f"{best} reads {len(pairs[best])} of its first {rows} rows, {form} {len(differing)} otherwise"
            raise RecipeError(f"{where} fits several forms: {counts}. Name one: data.format={best!r} or {form!r}.")
