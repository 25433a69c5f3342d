"""Which form the first rows of a split have, or an error that lists what they might be."""

from __future__ import annotations

from ..errors import RecipeError, nearest
from .messages import Drop, Row
from .readers import FORMATS, explicit_pair
from .rendered import ADVICE, RENDERED_BEFORE

Pairs = dict[int, Row]  # place in the sample -> the pair that is read there


def choose_format(
    sample: list[Row], where: str, *, named: str | None, max_dropped: float, may_be_rendered: bool = False
) -> str:
    """The form that reads the first rows of a split, or the one that data.format names.

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
        drops = {form: _first_drop(results[form]) for form in results}
        raise _no_form(sample, where, named, drops)
    _refuse_another_reading(pairs, best, len(sample), where, max_dropped)
    return best


def _pairs(results: list[Row | Drop]) -> Pairs:
    return {place: pair for place, pair in enumerate(results) if not isinstance(pair, Drop)}


def _first_drop(results: list[Row | Drop]) -> Drop:
    return next(result for result in results if isinstance(result, Drop))


def _no_form(sample: list[Row], where: str, named: str | None, drops: dict[str, Drop]) -> RecipeError:
    """The error for rows that no form reads: their columns, the nearest form and what it lacks, and all forms."""
    for drop in drops.values():
        if RENDERED_BEFORE in drop.reason:
            return RecipeError(f"{where}: the first row cannot be used. {drop}. {ADVICE}")
    columns = list(dict.fromkeys(column for row in sample for column in row))
    is_not = f"{where} is not {named or 'of a form that is read'}."
    forms = "; ".join(f"{form}: {data_format.columns}" for form, data_format in FORMATS.items())
    return RecipeError(
        f"{is_not} Its columns: {', '.join(columns[:20]):.300}. {_nearest_form(columns, drops)} "
        f"Rename columns, name data.format or write data.reader. Read are {forms}."
    )


def _nearest_form(columns: list[str], drops: dict[str, Drop]) -> str:
    """The form that has its required columns, or shares the most, and why it does not read the first row."""
    if {"prompt", "response", "helpfulness"} <= set(columns):
        return "It scores single replies; HelpSteer2's pairs are read with data.data_dir='preference'."

    def likeness(form: str) -> tuple[bool, int]:
        return not drops[form].missing_column, len(FORMATS[form].reads & set(columns))

    form = max(drops, key=likeness)
    drop = drops[form]
    spelling = nearest(drop.missing_column, columns) if drop.missing_column else ""
    return f"Nearest is {form}, but its first row: {drop}.{spelling}"


def _refuse_another_reading(pairs: dict[str, Pairs], best: str, rows: int, where: str, max_dropped: float) -> None:
    """An error where another form reads rows, too, that the best form reads otherwise or not at all."""
    for form in pairs:
        differing = [place for place, pair in pairs[form].items() if pair != pairs[best].get(place)]
        if len(differing) > max_dropped * rows:
            counts = f"{best} reads {len(pairs[best])} of its first {rows} rows, {form} {len(differing)} otherwise"
            raise RecipeError(f"{where} fits several forms: {counts}. Name one: data.format={best!r} or {form!r}.")
