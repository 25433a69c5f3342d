"""Text as HTML: nothing of a prompt, an answer or a recipe becomes markup; and what differs in two answers, marked."""

from __future__ import annotations

import difflib
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Characters that HTML cannot hold, as their visible pictures; tab and line feed stay.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


class Html(str):
    """Text that is HTML already; any other text is escaped before it goes into a page."""


def escape(value: Any) -> Html:
    """A value as text of a page or of an attribute; what is HTML already stays as it is."""
    if isinstance(value, Html):
        return value
    text = str(value).translate(_CONTROLS)
    text = text.encode("utf-8", errors="replace").decode("utf-8")  # half a character becomes ?
    return Html(html.escape(text))


def element(tag: str, content: Any, css: str = "") -> Html:
    """One element with its class and its content, which is escaped unless it is HTML."""
    attribute = f' class="{escape(css)}"' if css else ""
    return Html(f"<{tag}{attribute}>{escape(content)}</{tag}>")


def joined(parts: Iterable[Any]) -> Html:
    """The parts one after the other, each escaped unless it is HTML."""
    return Html("".join(escape(part) for part in parts))


def table(rows: Iterable[Sequence[Any]], header: Sequence[str] = (), css: str = "") -> Html:
    """A table, the first cell of each row its head; it folds its words, and so is never wider than the page."""
    lines = []
    if header:
        lines.append(element("tr", joined(element("th", cell) for cell in header)))
    for first, *others in rows:
        lines.append(element("tr", joined([element("th", first), *(element("td", cell) for cell in others)])))
    return element("table", joined(lines), css)


def plain(value: Any) -> str:
    """A value of a recipe as it is read."""
    if value is None:
        return "none"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)


def marked(first: str, second: str) -> tuple[Html, Html]:
    """Two texts, with the words that only one of them has as <mark>."""
    words, other_words = _words(first), _words(second)
    matcher = difflib.SequenceMatcher(None, _bare(words), _bare(other_words), autojunk=False)
    shown: list[Html] = []
    other_shown: list[Html] = []
    for operation, start, end, other_start, other_end in matcher.get_opcodes():
        part, other_part = "".join(words[start:end]), "".join(other_words[other_start:other_end])
        if operation == "equal":
            shown.append(escape(part))
            other_shown.append(escape(other_part))
            continue
        if part:
            shown.append(element("mark", part))
        if other_part:
            other_shown.append(element("mark", other_part))
    return joined(shown), joined(other_shown)


def _words(text: str) -> list[str]:
    """A text in words, each with the white space behind it; joined they are the text again."""
    return re.findall(r"\S+\s*|\s+", text)


def _bare(words: list[str]) -> list[str]:
    return [word.strip() for word in words]
