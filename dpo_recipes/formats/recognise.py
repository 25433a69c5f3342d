"""Which form the first rows of a split have."""

from __future__ import annotations

from ..errors import RecipeError, nearest
from .messages import Drop, Row
from .readers import FORMATS, explicit_pair


def choose_format(sample: list[Row], where: str, *, named: str | None, few: float) -> str:
    """The form that reads a split's first rows, or the one named; RecipeError with the candidates. A share of `few`
    rows may be of another form: they are then dropped and counted, like other defects."""
    columns = list(dict.fromkeys(column for row in sample for column in row))
    made = {
        form: [explicit_pair(row, form, strict=not named) for row in sample] for form in ([named] if named else FORMATS)
    }
    good = {form: {n: pair for n, pair in enumerate(read) if isinstance(pair, dict)} for form, read in made.items()}
    if good.get("preference"):  # the same strings, as messages
        good.pop("text", None)
    best = max(good, key=lambda form: len(good[form]))
    if not good[best]:
        why = {form: [": ".join(one.args) for one in read if isinstance(one, Drop)][0] for form, read in made.items()}
        near = max(why, key=lambda form: (" is missing" not in why[form], len(FORMATS[form].reads & {*columns})))
        close = nearest(why[near].split()[1], columns) if " is missing" in why[near] else ""
        what = f"Nearest is {near}, but its first row: {why[near]}.{close}"
        if {"prompt", "response", "helpfulness"} <= {*columns}:
            what = "It scores single replies; HelpSteer2's pairs are read with data.data_dir='preference'."
        forms, has = "; ".join(f"{form}: {FORMATS[form].columns}" for form in FORMATS), ", ".join(columns[:20])
        is_not = f"{where} is not {named or 'of a form that is read'}. Its columns: {has:.300}."
        raise RecipeError(f"{is_not} {what} Rename columns, name data.format or write data.reader. Read are {forms}.")
    for form, read in good.items():
        others = [n for n, pair in read.items() if pair != good[best].get(n)]
        if len(others) > few * len(sample):
            how = f"{best} reads {len(good[best])} of its first {len(sample)} rows, {form} {len(others)} otherwise"
            raise RecipeError(f"{where} fits several forms: {how}. Name one: data.format={best!r} or {form!r}.")
    return best
