"""The data of a recipe: which preference pairs, in which form, and what may become of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..errors import UsageError
from ..formats.messages import problem_of_template_kwargs
from ..formats.readers import FORMATS
from .validation import Limit, Value, refuse_another_signature

# The names of the rows of FORMATS. mypy takes no Literal that is computed; to it a name is any text.
if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(FORMATS)]

# The endings of files of rows that are read: these also where they are compressed, as .jsonl.gz, and parquet.
TEXT_SUFFIXES = (".json", ".jsonl", ".csv")
COMPRESSED = (".gz", ".xz", ".zst")
FILE_SUFFIXES = (*TEXT_SUFFIXES, *(text + packing for packing in COMPRESSED for text in TEXT_SUFFIXES), ".parquet")

# Stops of the data report, by name.
STOPS = ("border", "start_token", "end_token", "special_tokens", "lost_text", "truncated", "contradictions")


WRITTEN = date(2026, 11, 21)  # when this line was: a clock that shows an earlier day, as without a battery, is wrong


def _is_share(value: float) -> bool:
    return 0 <= value <= 1


def _are_shares_of_paths(mix: dict[str, float]) -> bool:
    return all(0 < share <= 1 for share in mix.values())


def _is_split_or_share(value: str | float) -> bool:
    if isinstance(value, str):  # what is meant for a share, or for nothing at all, is no name of a split
        return not value.endswith("%") and value.lower() not in ("none", "true", "false")
    return 0 < value < 1


def _is_past_iso_date(text: str) -> bool:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return False
    today_somewhere = date.today() + timedelta(days=1)  # east of here it may be tomorrow
    latest = max(today_somewhere, WRITTEN)
    return day.isoformat() == text and day <= latest  # Python reads 20250708 too


def _is_jinja(template: str) -> bool:
    return "{{" in template or "{%" in template


def _are_stops(names: list[str]) -> bool:
    return set(names) <= set(STOPS)


SHARE = Limit(_is_share, "a share in [0, 1]")
SHARES_OF_PATHS = Limit(_are_shares_of_paths, "paths with the share of their pairs to use, in (0, 1]")
SPLIT_OR_SHARE = Limit(_is_split_or_share, "a split, a file, or the share to hold out, between 0 and 1")
ISO_DATE = Limit(_is_past_iso_date, "a date that is not in the future, as YYYY-MM-DD, such as 2025-07-08")
JINJA = Limit(
    _is_jinja,
    "Jinja, with {{ ... }} or {% ... %}. The name of a file is not read; in a recipe file its text is "
    "Path('template.jinja').read_text(), on the command line data.chat_template=\"$(cat template.jinja)\".",
)
KNOWN_STOPS = Limit(_are_stops, f"a list of findings to allow: {', '.join(STOPS)}")


@dataclass(frozen=True, kw_only=True)
class Data(Value):
    """Preference pairs: a hub id, a local json, jsonl, csv or parquet file, or a folder of files named after splits."""

    path: str | None = field(default=None, kw_only=False)
    # several of these: path -> share of its pairs to use
    mix: Annotated[dict[str, float], SHARES_OF_PATHS] = field(default_factory=dict)
    train: str = "train"  # split, or a slice of one: "train[:1000]"
    eval: Annotated[str | float, SPLIT_OR_SHARE] = 0.05  # a split, or the share of the train pairs to hold out
    subset: str | None = None  # configuration name on the hub
    data_dir: str | None = None  # folder inside the hub data set
    revision: str | None = None  # branch, tag or commit of the hub data set
    format: Format | None = None  # None: recognised from the columns
    reader: Callable[[dict[str, Any]], Any] | None = None  # row -> prompt, chosen, rejected; or None to drop it
    streaming: bool = False  # read while training, from a set too large to store
    chat_template: Annotated[str | None, JINJA] = None  # for a base model that has none
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # e.g. {"enable_thinking": False}
    template_date: Annotated[str | None, ISO_DATE] = None  # for templates that print today's date
    # "merge": a system message goes before the first question where the chat template has no such role
    system: Literal["keep", "merge"] = "keep"
    # of several replies to one prompt: each over each worse one; the best over the worst; the best over one drawn
    pairing: Literal["all", "best_worst", "best_random"] = "all"
    turns: Literal["last", "all"] = "last"  # of whole conversations: a pair of the last, or of each that differs
    drop_truncated: bool = False  # drop pairs of which max_length cuts a side, with its end token
    max_dropped: Annotated[float, SHARE] = 0.05  # of rows that may be unusable before the run is refused
    # a folder of reference log-probabilities of these pairs, as `dpo-recipes reference` writes it
    reference: str | None = None
    exclude: str | None = None  # a file of pairs not to train on, as `check --pairs` writes it
    # stops of the data report that do not stop this run
    allow: Annotated[list[str], KNOWN_STOPS] = field(default_factory=list)

    def refuse_contradictions(self) -> None:
        has_path, has_mix = self.path is not None, bool(self.mix)
        if has_path == has_mix:
            raise UsageError("Data(path) or Data(mix={path: share}): one of the two.")
        if self.format and self.reader:
            raise UsageError("data.format does nothing beside data.reader, which reads the rows itself.")
        refuse_another_signature("reader(row)", self.reader, "row")
        problem = problem_of_template_kwargs(self.chat_template_kwargs)
        if problem:
            raise UsageError(f"data.chat_template_kwargs {problem}")

    @property
    def paths(self) -> dict[str, float]:
        """Path -> share of its pairs to use."""
        return self.mix or {str(self.path): 1.0}

    @property
    def name(self) -> str:
        return " + ".join(self.paths)
