"""Pairs -> token ids, exactly those that TRL would make; without the pairs that can teach nothing.

Leans on TRL 1.16: where `DPOTrainer._prepare_dataset` parts prompt and completions, and the truncation of its collator.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from datetime import date
from importlib.metadata import version
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..formats.image_marks import IMAGE_TOKENS, IMAGES
from ..runs.source_hash import source_hash
from .batches import Tally, batches, kept_pairs
from .drop_reasons import count_drop, count_drops
from .image_pairs import REFUSED_BY_PROCESSOR, ImageReader
from .pair_ids import REFUSED, render, rendered_strings, row_of_batch, sequences
from .report import FIGURES, NO_LIMIT, Counts, Figures, figures_of, split_report
from .template_trial import lost_text

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")

# Why a pair that was read is not trained on.
PROMPT_FILLS = "prompt fills max_length"
SAME_WHEN_CUT = "identical after truncation"
SAME_WHEN_RENDERED = "identical after the chat template"
LOSES_END = "truncated: a side loses its end token"
DROP_REASONS = ("", PROMPT_FILLS, SAME_WHEN_CUT, SAME_WHEN_RENDERED, LOSES_END)

READ = ("row", "prompt", "chosen", "rejected", "tools", "chat_template_kwargs", IMAGES)  # columns
PAIRS_OF_A_BATCH = 1000  # are stored together, where each batch costs memory as long as it is mapped
PAIRS_AT_ONCE = 100  # are tokenised together, as ids in Python's own lists are large

ROWS_OF_A_STREAM = 20  # after which it is clear that a template refuses them all


def prepare(
    pairs: Any,
    tokenizer: Any,
    *,
    text: bool,
    max_length: int | None,
    ends: set[int],
    drop_truncated: bool,
    num_proc: int | None,
    split: str = "train",
    micro_batch_size: int = 1,
    seed: int = 0,
    dropped: dict[str, Any] | None = None,
    images: ImageReader | None = None,
) -> tuple[Any, dict[str, Any]]:
    """(the pairs that can teach something, with the columns IDS and `length`; the split's part of the data report).

    `length` is that of a pair's longer sequence, prompt and completion, in tokens. `text`: the pairs are strings,
    without a chat template; `ends`: ids that end a reply; `dropped`: the dict in which dropped pairs are counted;
    `images`: the processor of pairs with images, whose places in `prompt_ids` are not filled: `length` counts them
    filled, and IMAGE_TOKENS how many more tokens that is.
    Of a stream the part is {"dropped"} alone, which grows while this process reads the stream.

    RecipeError when the chat template refuses every row; of some rows it is a reason to drop them.
    """
    from datasets import IterableDataset

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are parallel here; threads would warn of each fork
    if dropped is None:
        dropped = {}
    how_to_tokenize = {"tokenizer": tokenizer, "text": text, "ends": ends, "images": images}
    if isinstance(pairs, IterableDataset):
        what_to_drop = {
            "max_length": max_length,
            "drop_truncated": drop_truncated,
            "dropped": dropped,
            "seen": {"rows": 0, "refused": 0},
        }
        stream = pairs.map(_stream, batched=True, batch_size=1, fn_kwargs=how_to_tokenize | what_to_drop)
        return stream, {"dropped": dropped}

    tokenized = _tokenize_stored(pairs, how_to_tokenize, num_proc, description=f"Tokenizing {split} pairs")
    is_kept, counts = _keep_and_count(tokenized, max_length, drop_truncated, dropped)
    part = split_report(
        counts,
        tokenized,
        dropped=dropped,
        micro_batch_size=micro_batch_size,
        seed=seed,
        adds_start_token=_adds_start_token(tokenizer),
        border_example=_left_out_text(tokenized, counts.border, tokenizer, text),
        lost_example=_first_lost_text(tokenized, counts.lost_text, tokenizer),
    )
    return kept_pairs(tokenized, is_kept).remove_columns([*FIGURES, "refusal"]), part


def _keep_and_count(
    tokenized: Any, max_length: int | None, drop_truncated: bool, dropped: dict[str, Any]
) -> tuple[np.ndarray, Counts]:
    """(which pairs can teach something, a flag for each; what is counted of those that the chat template renders).

    The others are counted in `dropped`.
    """
    is_kept = np.zeros(len(tokenized), dtype=bool)
    counts = Counts(max_length)
    drops: dict[str, Tally] = {}
    for first, table in batches(tokenized, [*FIGURES, "refusal"]):
        refusals = np.array(table["refusal"].to_pylist(), dtype=object)
        is_rendered = refusals == ""
        for place in np.flatnonzero(~is_rendered):
            drops.setdefault(refusals[place], Tally()).add(first + np.array([place]))

        numbers = first + np.flatnonzero(is_rendered)
        figures = figures_of(table).select(is_rendered)
        reasons = _drop_reasons(figures, max_length, drop_truncated)
        for place in np.unique(reasons[reasons > 0]):
            drops.setdefault(DROP_REASONS[place], Tally()).add(numbers[reasons == place])
        is_kept[numbers[reasons == 0]] = True
        counts.add(figures, numbers, reasons == 0)

    if drops and not counts.every_pair:
        raise _refuses_every_row(next(iter(drops)))
    for reason, tally in drops.items():
        count_drops(dropped, reason, tally.counted(tokenized))
    return is_kept, counts


def _refuses_every_row(refusal: str) -> RecipeError:
    if refusal.startswith(REFUSED_BY_PROCESSOR):
        words = refusal.removeprefix(f"{REFUSED_BY_PROCESSOR}: ")
        return RecipeError(f"The model's processor refuses every row. Its own words: {words}. Correct the images.")
    words = refusal.removeprefix(f"{REFUSED}: ")
    return RecipeError(
        f"The chat template refuses every row. Its own words: {words}. Correct data.chat_template or the rows; where "
        "it has no system role, data.system=merge puts a system message before the first question."
    )


def _tokenize_stored(pairs: Any, how_to_tokenize: dict[str, Any], num_proc: int | None, description: str) -> Any:
    """All pairs with IDS, `length` and FIGURES; from the cache where the same was asked before."""
    from datasets import Features, List, Value

    features = {
        **pairs.features,
        **dict.fromkeys(IDS, List(Value("int32"))),
        **dict.fromkeys(["length", *FIGURES], Value("int32")),
        "refusal": Value("string"),
    }
    if how_to_tokenize["images"] is not None:
        features[IMAGE_TOKENS] = Value("int32")
    columns = [name for name in pairs.column_names if name in READ]
    return pairs.map(
        _tokenize_columns,
        batched=True,
        batch_size=PAIRS_OF_A_BATCH,
        input_columns=columns,  # the others need not be read, and all of them are stored as they are
        fn_kwargs={"names": columns, **how_to_tokenize},
        features=Features(features),
        num_proc=_processes(num_proc, len(pairs)),
        desc=description,
        new_fingerprint=_key(pairs, **how_to_tokenize),  # of all that the ids depend on, which max_length is not
    )


def _processes(num_proc: int | None, pairs: int) -> int | None:
    """How many processes tokenise; None for this one alone."""
    from multiprocess import get_start_method

    # Other ways of starting a process than fork would run a user's script anew in each: only when they are asked for.
    if num_proc is None and get_start_method() == "fork":
        num_proc = min(len(os.sched_getaffinity(0)), pairs // 1000)
    num_proc = min(num_proc or 1, pairs)
    return num_proc if num_proc > 1 else None


def _adds_start_token(tokenizer: Any) -> bool | None:
    """Whether the tokenizer puts its start token before plain text; None where it has none."""
    if tokenizer.bos_token_id is None:
        return None
    return tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def _left_out_text(pairs: Any, changed: Tally, tokenizer: Any, text: bool) -> str | None:
    """The end of the first prompt that changes when an answer follows, or None where there is no such prompt."""
    if not changed.first:
        return None
    rows = pairs.select(changed.first[:1])[:]
    rendered, _ = render(rows, tokenizer, text)
    [prompt_alone], _, _ = sequences(rendered, tokenizer, text)
    return tokenizer.decode(prompt_alone[rows["prompt_tokens"][0] :])[:200]


def _first_lost_text(pairs: Any, losing: Tally, tokenizer: Any) -> str | None:
    """What the chat template leaves out of the first pair of which it loses something, with the role that says it."""
    if not losing.first:
        return None
    row = pairs[losing.first[0]]
    return lost_text(row, rendered_strings(row, tokenizer))


# ----------------------------------------------------------------------------------------------------- a batch of pairs


def _stream(
    batch: dict[str, list],
    *,
    tokenizer: Any,
    text: bool,
    ends: set[int],
    images: None,
    max_length: int | None,
    drop_truncated: bool,
    dropped: dict[str, Any],
    seen: dict[str, int],
) -> dict[str, list]:
    """The pairs of a batch that stay, tokenised. `seen` counts the rows, and those that the template refuses."""
    tokenized = _tokenize(batch, tokenizer=tokenizer, text=text, ends=ends, images=images)
    [refusal] = tokenized.pop("refusal")
    seen["rows"] += 1
    if refusal:
        seen["refused"] += 1
        if seen["rows"] == seen["refused"] >= ROWS_OF_A_STREAM:
            raise _refuses_every_row(refusal)
        count_drop(dropped, refusal, batch["row"][0])
        return {name: [] for name in (*batch, *IDS, "length")}
    figures = Figures(**{name: np.asarray(tokenized.pop(name)) for name in FIGURES})
    reasons = _drop_reasons(figures, max_length, drop_truncated)
    for pair in np.flatnonzero(reasons):
        count_drop(dropped, DROP_REASONS[reasons[pair]], batch["row"][pair])
    is_kept = reasons == 0
    return {name: list(itertools.compress(column, is_kept)) for name, column in (batch | tokenized).items()}


def _tokenize_columns(*columns: list, names: list[str], **how_to_tokenize: Any) -> dict[str, list]:
    """The new columns of many pairs, which come as the columns of these names."""
    tokenized: dict[str, list] = {}
    for start in range(0, len(columns[0]), PAIRS_AT_ONCE):
        some = {name: column[start : start + PAIRS_AT_ONCE] for name, column in zip(names, columns, strict=True)}
        for name, column in _tokenize(some, **how_to_tokenize).items():
            if name in IDS:
                column = [np.array(ids, dtype=np.int32) for ids in column]
            tokenized.setdefault(name, []).extend(column)
    return tokenized


def _tokenize(
    batch: dict[str, list], *, tokenizer: Any, text: bool, ends: set[int], images: ImageReader | None = None
) -> dict[str, list]:
    """The columns IDS, `length` and FIGURES of a batch, and IMAGE_TOKENS where there are images.

    As in TRL, the completions start where one of them first changes a token of the prompt: what the prompt holds
    behind that place stands in no part.
    """
    columns: dict[str, list] = {name: [] for name in (*IDS, "length", *FIGURES, "refusal")}
    control_tokens = _control_tokens(tokenizer)
    image_tokens = [0] * len(batch["row"])
    if images is None:
        rendered, refusals = render(batch, tokenizer, text)
        prompts, with_chosen, with_rejected = sequences(rendered, tokenizer, text)
    else:
        rendered, refusals, image_tokens = images.render(batch)
        prompts, with_chosen, with_rejected = images.sequences(rendered)
        columns[IMAGE_TOKENS] = []
    for pair, prompt in enumerate(prompts):
        border = min(_common_tokens(prompt, with_chosen[pair]), _common_tokens(prompt, with_rejected[pair]))
        chosen = with_chosen[pair][border:]
        rejected = with_rejected[pair][border:]
        chosen_ends = _end_tokens(chosen, tokenizer, ends)
        rejected_ends = _end_tokens(rejected, tokenizer, ends)
        messages: list[dict[str, Any]] = []
        loses_text = False
        if not text:
            messages = [*batch["prompt"][pair], *batch["chosen"][pair], *batch["rejected"][pair]]
            is_rendered = not refusals[pair]
            loses_text = is_rendered and bool(lost_text(row_of_batch(batch, pair), rendered[pair]))
        values = {
            "prompt_ids": prompt[:border],
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "length": border + image_tokens[pair] + max(len(chosen), len(rejected)),
            "prompt_tokens": border + image_tokens[pair],
            "chosen_tokens": len(chosen),
            "rejected_tokens": len(rejected),
            "common_tokens": _common_tokens(chosen, rejected),
            "left_out_tokens": len(prompt) - border,
            "start_tokens": _start_tokens(with_chosen[pair], tokenizer),
            "fewest_ends": min(chosen_ends.total(), rejected_ends.total()),
            "most_ends": max([0, *chosen_ends.values(), *rejected_ends.values()]),
            "control_tokens": int(_hold_control_token(messages, control_tokens)),
            "lost_text": int(loses_text),
            "refusal": refusals[pair],
            IMAGE_TOKENS: image_tokens[pair],
        }
        for name, column in columns.items():
            column.append(values[name])
    return columns


# ------------------------------------------------------------------------------------------------ what is counted of it


def _common_tokens(ids: list[int], other: list[int]) -> int:
    """How many tokens both start with."""
    shorter = min(len(ids), len(other))
    if ids[:shorter] == other[:shorter]:
        return shorter
    for place, (token, other_token) in enumerate(zip(ids, other, strict=False)):
        if token != other_token:
            return place
    return shorter


def _start_tokens(ids: list[int], tokenizer: Any) -> int:
    """How many start tokens a sequence starts with."""
    return len(list(itertools.takewhile(lambda token: token == tokenizer.bos_token_id, ids)))


def _end_tokens(side: list[int], tokenizer: Any, ends: set[int]) -> Counter[int]:
    """The end tokens behind which nothing but white space follows, each with its number."""
    counts = Counter[int]()
    for token in reversed(side):
        if token in ends:
            counts[token] += 1
        elif tokenizer.decode([token]).strip():
            break
    return counts


def _control_tokens(tokenizer: Any) -> list[str]:
    """The special tokens as text. One of a single character, such as an end token "|", may well be meant as text.

    Llama 3's <|start_header_id|> is none of the named special tokens, only among those that were added as special.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in {*tokenizer.all_special_tokens, *added} if len(token) > 1]


def _hold_control_token(messages: list[dict[str, Any]], control_tokens: list[str]) -> bool:
    texts = [message["content"] for message in messages]
    return any(token in text for token in control_tokens for text in texts)


# -------------------------------------------------------------------------------------------------- drops and the cache


def _drop_reasons(figures: Figures, max_length: int | None, drop_truncated: bool) -> np.ndarray:
    """Of each pair the place in DROP_REASONS: 0 for those that stay where max_length cuts the end of a side."""
    room = (max_length or NO_LIMIT) - figures.prompt_tokens  # for a completion
    chosen = np.minimum(figures.chosen_tokens, room)
    rejected = np.minimum(figures.rejected_tokens, room)
    is_cut = np.maximum(figures.chosen_tokens, figures.rejected_tokens) > room
    are_identical = (chosen == rejected) & (figures.common_tokens >= chosen)

    # The first condition that holds says why.
    conditions = {
        PROMPT_FILLS: room <= 0,
        SAME_WHEN_CUT: are_identical & is_cut,
        SAME_WHEN_RENDERED: are_identical,
        LOSES_END: is_cut & drop_truncated,
    }
    return np.select(list(conditions.values()), [DROP_REASONS.index(reason) for reason in conditions], default=0)


def _key(pairs: Any, tokenizer: Any, text: bool, ends: set[int], images: ImageReader | None = None) -> str:
    """A hash of all that the ids depend on, by which the cache finds them again."""
    template = str(tokenizer.chat_template)
    depends_on = [
        pairs._fingerprint,
        _tokenizer_state(tokenizer),
        template,
        tokenizer.special_tokens_map,
        type(tokenizer),
        text,
        sorted(ends),
        "strftime_now" in template and date.today(),  # it prints the day, so its tokens are others tomorrow
        FIGURES,
        images and images.state(),
        source_hash("data.tokenize", "data.pair_ids", "data.image_pairs", "data.template_trial"),
        version("tokenizers"),
        version("transformers"),
    ]
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer does to text. Pickled, it would also hold the padding and truncation of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    return json.loads(backend.to_str()) | {"truncation": None, "padding": None}
