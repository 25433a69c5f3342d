"""Pairs -> token ids, exactly those that TRL would make, and what must be known of them before training.

Leans on TRL 1.16: `DPOTrainer._prepare_dataset` and the truncation of its collator, step for step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from datetime import date
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Finding, RecipeError

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
# Per pair: tokens of each part, of the start that both completions share, and left out at the prompt's end; start
# tokens; the fewest ends of a side, the most of one end token; control tokens that stand in the texts.
FIGURES = [
    "_prompt",
    "_chosen",
    "_rejected",
    "_shared",
    "_left_out",
    "_starts",
    "_fewest_ends",
    "_most_ends",
    "_control",
]
DROPS = ("", "prompt fills max_length", "identical after truncation", "identical after the chat template",
         "truncated: a side loses its end token")  # fmt: skip


def prepare(
    pairs: Any, tokenizer: Any, *, text: bool, max_length: int | None, ends: set[int], drop_truncated: bool,
    num_proc: int | None, split: str = "train", micro_batch_size: int = 1, seed: int = 0,
    dropped: dict[str, Any] | None = None,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """(the pairs that can teach something, with the columns IDS and `length`, that of the longer sequence; the split's
    part of the data report).

    `text`: strings, without a chat template; `ends`: ids that end a reply. Of a stream the part is {"dropped"} alone,
    the dict that was given, which grows while this process reads it."""
    from datasets import Features, IterableDataset, List, Value
    from multiprocess import get_start_method

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are parallel here; threads would warn of each fork
    dropped = {} if dropped is None else dropped
    how, limits = {"tokenizer": tokenizer, "text": text, "ends": ends}, (max_length or 2**60, drop_truncated, dropped)
    if isinstance(pairs, IterableDataset):
        made = pairs.map(_stream, batched=True, batch_size=1, fn_kwargs=how | {"limits": limits})
        return made, {"dropped": dropped}
    if num_proc is None and get_start_method() == "fork":  # other ways would run a user's script anew in each process
        num_proc = min(len(os.sched_getaffinity(0)), len(pairs) // 1000)
    columns = dict.fromkeys(IDS, List(Value("int32"))) | dict.fromkeys(["length", *FIGURES], Value("int32"))
    made = pairs.map(
        _tokenize, batched=True, batch_size=100, fn_kwargs=how, features=Features({**pairs.features, **columns}),
        num_proc=cores if (cores := min(num_proc or 1, len(pairs))) > 1 else None, desc=f"Tokenizing {split} pairs",
        new_fingerprint=_key(pairs, **how),  # of all that the ids depend on, which max_length is not
    )  # fmt: skip
    lengths = np.sort(made.with_format("numpy")["length"][:])
    every = made.select_columns(FIGURES).with_format("numpy")[:]
    kept = _kept(every, made["row"], *limits)
    made = (made if len(kept) == len(made) else made.select(kept)).remove_columns(FIGURES)
    prompt, chosen, rejected, _, left_out, starts, fewest, most, control = (every[name][kept] for name in FIGURES)
    quantiles = np.percentile([every[name] for name in FIGURES[:3]], (50, 95, 99, 100), axis=1, method="inverted_cdf")
    cut, n = [prompt + side > limits[0] for side in (chosen, rejected)], max(len(kept), 1)

    def found(**flags: np.ndarray) -> dict[str, Any]:  # how many have each flag, and the first rows with the last one
        rows = [made[int(at)]["row"] for at in np.flatnonzero([*flags.values()][-1])[:3]]
        return {name: int(flag.sum()) for name, flag in flags.items()} | {"rows": rows}

    part = {
        "pairs": len(kept),  # what is below is of these, but for two that say all
        "dropped": dropped,
        "tokens": {  # of all, before truncation
            name[1:]: dict(zip(("p50", "p95", "p99", "max"), map(int, found), strict=True))
            for name, found in zip(FIGURES, quantiles.T, strict=False)
        },
        "truncated": found(chosen=cut[0], rejected=cut[1], pairs=cut[0] | cut[1]),
        "max_length_keeping_99": int(lengths[-1 - len(lengths) // 100]),  # of all
        "longer_chosen": float((chosen > rejected).sum() / n),
        "pick_longer_accuracy": float((1 + np.sign(chosen - rejected)).sum() / 2 / n),
        "border": found(count=left_out > 0) | {"example": None},
        "start_token": found(none=starts == 0, one=starts == 1, doubled=starts > 1),
        "special_tokens": found(count=control > 0),
        "end_token": found(missing=fewest == 0, repeated=most > 1, pairs=(fewest == 0) | (most > 1)),
        **costs(prompt, chosen, rejected, micro_batch_size, max_length, seed),
    }  # fmt: skip
    if tokenizer.bos_token_id is None:
        part["start_token"] = dict.fromkeys(part["start_token"])
    part["start_token"]["wanted"] = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    for at in np.flatnonzero(left_out)[:1]:
        [whole], *_ = _sequences(made.select([at])[:], tokenizer, text)
        part["border"]["example"] = tokenizer.decode(whole[prompt[at] :])[:200]
    return made, part


def costs(prompt: Any, chosen: Any, rejected: Any, micro_batch_size: int, max_length: int | None, seed: int) -> dict:
    """Tokens of an epoch after truncation, from arrays of lengths: `padded` as TRL reads them, two rows a pair, each as
    long as the longest of its random micro-batch; `real` without padding; `shared` with a pair's prompt read once."""
    prompt, *both = np.minimum([prompt, prompt + chosen, prompt + rejected], max_length or 2**60)
    longest = np.random.default_rng(seed).permutation(np.maximum(*both))
    at = np.arange(0, len(prompt), micro_batch_size)
    padded = 2 * np.maximum.reduceat(longest, at) @ np.diff(at, append=len(prompt)) if len(at) else 0
    real = int(np.sum(both))
    return {"padded_tokens": int(padded), "real_tokens": real, "shared_tokens": real - int(prompt.sum())}


def rules(part: dict, split: str, *, allow: list[str], max_dropped: float, max_length: int | None) -> list[Finding]:
    """What a part of the data report means for the run; nothing of a stream, which is not known beforehand."""
    if "pairs" not in part:
        return []
    cut, border, start, end, marks = (
        part[name] for name in ("truncated", "border", "start_token", "end_token", "special_tokens")
    )
    pairs, most, picks = part["pairs"], part["max_length_keeping_99"], part["pick_longer_accuracy"]
    total = pairs + (lost := sum(drop["count"] for drop in part["dropped"].values()))

    def of(count: int | None, rows: list | None = None, total: int = pairs) -> str:
        where = f"; rows {', '.join(map(str, rows))}" if rows else ""
        return f"{count or 0:,} of {total:,} pairs ({(count or 0) / max(total, 1):.1%}{where})"

    reasons = "".join(f" {why}: {of(drop['count'], drop['rows'], total)}." for why, drop in part["dropped"].items())
    findings = []
    for name, fails, warns, what, after in (
        ("dropped", lost / max(total, 1) > max_dropped or not pairs, False,
         f"{of(lost, total=total)} are dropped at max_length={max_length}.{reasons}",
         "Correct the rows, raise max_length, or allow it with data.max_dropped."),
        ("truncated", cut["pairs"] > 0.25 * pairs, cut["pairs"] > 0.01 * pairs,
         f"{of(cut['pairs'], cut['rows'])} are cut at max_length={max_length}; {most} would keep 99 % whole.",
         f"A side without its end teaches to run on. Set max_length={most}, or data.drop_truncated=True."),
        ("border", border["count"] > 0.05 * pairs, border["count"] > 0,
         f"{of(border['count'], border['rows'])} have a prompt whose tokens change when an answer follows.",
         f"Its end {border['example']!r} is left out: answers are learned behind other tokens than they are asked for. "
         "Change data.chat_template_kwargs (thinking?) or data.chat_template; end text prompts before a space."),
        ("special_tokens", marks["count"] > 0.05 * pairs, marks["count"] > 0,
         f"{of(marks['count'], marks['rows'])} hold control tokens such as the end token in their texts.",
         "Were they rendered before? The chat template would do it again: set data.format='text', or take them out."),
        ("start_token", bool(start["doubled"]), bool(start["wanted"] and start["none"]),
         f"{of(start['doubled'], start['rows'])} start with two start tokens, {start['none'] or 0:,} with none.",
         "The tokenizer adds one to plain text: a conversation needs one too, from data.chat_template, and no second."),
        ("end_token", max(end["missing"], end["repeated"]) > 0.05 * pairs, end["pairs"] > 0,
         f"The end token is missing in {of(end['missing'])} and repeated in {of(end['repeated'])}.",
         f"Answers would not stop, or stop twice: rows {', '.join(end['rows'])}. Change data.chat_template or rows."),
        ("length", False, not 0.3 <= picks <= 0.7, f"To pick the longer side is right in {picks:.1%} of the pairs.",
         "Length may be all that is learned; loss='sigmoid_norm' or trl={'ld_alpha': 0.5} weigh it less."),
    ):  # fmt: skip
        if not pairs and name != "dropped":
            continue
        allowed = fails and name in allow
        if fails and name != "dropped":
            after += f" {'Allowed by' if allowed else 'Or accept it:'} data.allow=['{name}']."
        level: Any = "fail" if fails and not allowed else "warn" if fails or warns else "pass"
        findings.append(Finding(level, f"{split} {name}", what if level == "pass" else f"{what} {after}"))
    return findings


def _sequences(batch: dict[str, list], tokenizer: Any, text: bool) -> list[list[list[int]]]:
    """The ids of the prompts, of the prompts with chosen, of the prompts with rejected."""
    texts, none, eos, render = [], [None] * len(batch["row"]), tokenizer.eos_token, tokenizer.apply_chat_template
    columns = (batch.get(c) or none for c in ("row", "prompt", "chosen", "rejected", "tools", "chat_template_kwargs"))
    for row, prompt, *sides, tools, own in zip(*columns, strict=True):
        if text:  # as in TRL, an end token follows a side that has none
            texts.append([prompt, *(prompt + side.removesuffix(eos) + eos for side in sides)])
            continue
        how = {"tools": json.loads(tools) if isinstance(tools, str) else tools, **(own or {}), "tokenize": False}
        try:
            whole = [render(prompt + side, **how) for side in sides]
            texts.append([render(prompt, add_generation_prompt=True, **how), *whole])
        except Exception as error:  # of Jinja, or of whatever a template does to a row that it does not expect
            what = "Correct it, or change data.chat_template or data.chat_template_kwargs."
            raise RecipeError(f"The chat template refuses row {row}: {error}. {what}") from None
    flat = [string for place in zip(*texts, strict=True) for string in place]
    ids = tokenizer(flat, add_special_tokens=text, return_attention_mask=False, verbose=False)["input_ids"]
    return [ids[at : at + len(texts)] for at in range(0, len(ids), len(texts))]


def _tokenize(batch: dict[str, list], *, tokenizer: Any, text: bool, ends: set[int]) -> dict[str, list]:
    """IDS and FIGURES of a batch; as in TRL, the completions start where one leaves the tokens of the prompt alone."""
    made, marks = [], [] if text else [token for token in tokenizer.all_special_tokens if len(token) > 1]
    said = zip(*(batch[column] for column in ("prompt", "chosen", "rejected")), strict=True)
    for parts, prompt, *whole in zip(said, *_sequences(batch, tokenizer, text), strict=True):
        control = any(mark in message["content"] for mark in marks for part in parts for message in part)
        start = min(_common(prompt, ids) for ids in whole)
        sides = chosen, rejected = [ids[start:] for ids in whole]
        starts = sum(1 for _ in takewhile(lambda t: t == tokenizer.bos_token_id, whole[0]))
        tails = (takewhile(lambda t: t in ends or not tokenizer.decode([t]).strip(), side[::-1]) for side in sides)
        counts = [Counter(token for token in tail if token in ends) for tail in tails]
        lengths = (start, *map(len, sides), _common(*sides), len(prompt) - start)
        repeated = min(c.total() for c in counts), max(max(c.values(), default=0) for c in counts)
        longer = start + max(map(len, sides))
        made.append((prompt[:start], chosen, rejected, longer, *lengths, starts, *repeated, control))
    return dict(zip((*IDS, "length", *FIGURES), map(list, zip(*made, strict=True)), strict=True))


def _common(ids: list[int], other: list[int]) -> int:
    """How many tokens both start with."""
    return next((at for at, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))


def _kept(n: dict[str, Any], rows: Any, limit: int, drop_truncated: bool, dropped: dict[str, Any]) -> np.ndarray:
    """Places of the pairs that stay where `limit` cuts the end of a side; the others are counted in `dropped`."""
    prompt, chosen, rejected, shared = (np.asarray(n[name]) for name in FIGURES[:4])
    left, right = np.minimum([chosen, rejected], room := limit - prompt)
    cut, same = np.maximum(chosen, rejected) > room, (left == right) & (shared >= left)
    fates = np.select([room <= 0, same & cut, same, drop_truncated & cut], [1, 2, 3, 4], 0)
    for at in np.flatnonzero(fates):
        drop = dropped.setdefault(DROPS[fates[at]], {"count": 0, "rows": []})
        drop["count"] += 1
        drop["rows"] += [rows[int(at)]] if drop["count"] <= 3 else []
    return np.flatnonzero(fates == 0)


def _stream(batch: dict[str, list], *, limits: tuple[int, bool, dict], **how: Any) -> dict[str, list]:
    """The pairs of a batch that stay, tokenised."""
    kept = _kept(made := _tokenize(batch, **how), batch["row"], *limits)
    return {name: [column[at] for at in kept] for name, column in {**batch, **made}.items() if name not in FIGURES}


def _key(pairs: Any, tokenizer: Any, text: bool, ends: set[int]) -> str:
    """A hash of all that the ids depend on; a pickled tokenizer would also hold the padding of its last call."""
    backend, template = getattr(tokenizer, "backend_tokenizer", None), str(tokenizer.chat_template)
    state = json.loads(backend.to_str()) | {"truncation": None, "padding": None} if backend else tokenizer.get_vocab()
    today = "strftime_now" in template and date.today()  # it prints the day, so its tokens are others tomorrow
    code = Path(__file__).read_text(encoding="utf-8"), version("tokenizers"), version("transformers")
    held = [pairs._fingerprint, state, template, tokenizer.special_tokens_map, type(tokenizer), text, sorted(ends)]
    return hashlib.sha256(json.dumps([*held, today, code], sort_keys=True, default=str).encode()).hexdigest()[:32]
