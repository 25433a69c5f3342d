"""A small world with a known truth: a shop assistant of mixed manners, for the quickstart and the tests.

A prompt is `[greeting] question about the colour, place or price of an item`; a reply follows the grammar
`[opening] answer [remark]* [closing]`. The reward of a reply is computed exactly by parsing it, so that "did training
help, and how much could it have helped" has an answer. `make` builds the rest from a seed: conversations, a tokenizer,
a small Llama that learns to answer as the conversations do, and preference pairs ranked from that model's own replies.

Nothing is downloaded. Importing this module costs nothing: torch and Transformers are imported by `make`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from .errors import RecipeError
from .pairs import preference_pairs

Progress = Callable[[int, int], None]  # (done, total)

ITEMS = (
    "lamp", "chair", "clock", "mirror", "vase", "carpet", "kettle", "violin",
    "basket", "painting", "candle", "mug", "globe", "drum", "sofa", "teapot",
)  # fmt: skip
GREETINGS = ("", "Hello. ", "Good morning. ", "Hi there. ", "Excuse me. ")
QUESTIONS = {
    "colour": (
        "What colour is the {}?", "Which colour does the {} have?", "Tell me the colour of the {}.",
        "What is the colour of the {}?",
    ),
    "place": ("Where is the {}?", "Where can I find the {}?", "Tell me where the {} is.", "Which room is the {} in?"),
    "price": (
        "How much is the {}?", "What does the {} cost?", "Tell me the price of the {}.", "What is the price of the {}?",
    ),
}  # fmt: skip
ANSWERS = {
    "colour": ("The {} is {}.", ("red", "blue", "green", "white", "black", "yellow")),
    "place": ("You will find the {} in the {}.", ("attic", "cellar", "kitchen", "hall", "garden", "window")),
    "price": ("The {} costs {} coins.", ("two", "three", "five", "seven", "nine", "twelve")),
}
UNSURE = "I do not know."
# Manners by tone: kind +1, flat 0, grumpy -1, each worth half a point.
OPENINGS = {
    1: ("Certainly.", "With pleasure.", "Of course, my friend."),
    0: ("Well.", "So."),
    -1: ("Not again.", "What now?", "You again."),
}
ADJECTIVES = {
    1: ("lovely", "splendid", "charming", "graceful"),
    0: ("small", "plain", "heavy", "modern"),
    -1: ("dreadful", "shabby", "hideous", "useless"),
}
CLOSINGS = {
    1: ("Have a wonderful day.", "I am glad to help.", "Come back soon."),
    0: ("That is all.", "Good day."),
    -1: ("Now leave me alone.", "Stop wasting my time.", "Do not come back."),
}
REMARK = "It is a {} piece."
OUTSIDE = -2.5  # the reward of a reply that is no reply of this world; the worst that is one scores the same

# Every prompt of the world -> (item, attribute): 960 of them.
PROMPTS = {
    greeting + form.format(item): (item, attribute)
    for item, (attribute, forms), greeting in product(ITEMS, QUESTIONS.items(), GREETINGS)
    for form in forms
}
TONE = {text: tone for table in (OPENINGS, ADJECTIVES, CLOSINGS) for tone, texts in table.items() for text in texts}


def _any(texts: Any) -> str:
    return "|".join(map(re.escape, texts))


_ANSWER = "|".join(
    form.replace(".", r"\.").replace("{}", f"(?P<{attribute}>{_any(ITEMS)})", 1).replace("{}", f"(?:{_any(values)})")
    for attribute, (form, values) in ANSWERS.items()
)
_REPLY = re.compile(
    f"(?:(?P<opening>{_any(sum(OPENINGS.values(), ()))}) )?(?:{_ANSWER}|{re.escape(UNSURE)})"
    f"(?P<remarks>(?: {REMARK.replace('{}', f'(?:{_any(sum(ADJECTIVES.values(), ()))})').replace('.', '[.]')})*)"
    f"(?: (?P<closing>{_any(sum(CLOSINGS.values(), ()))}))?"
)


def in_grammar(completion: str) -> bool:
    """Whether a reply is one that this world's grammar can produce, to the letter."""
    return _REPLY.fullmatch(completion) is not None


def reward(prompt: str, completion: str) -> float:
    """The exact reward of a reply, between -2.5 and 2.5.

    The answer is about the item and attribute asked for: +1; "I do not know.": 0; about another: -1. The opening, the
    closing, and the sum of the remarks clipped to one: +0.5 for a kind tone, -0.5 for a grumpy one. A reply outside
    the grammar: -2.5. The value told (red, attic, five) does not matter: this world has no facts to memorise.
    """
    if prompt not in PROMPTS:
        raise RecipeError(f"{prompt!r} is no prompt of this world, so a reply has no reward: see toyworld.PROMPTS.")
    reply = _REPLY.fullmatch(completion)
    if reply is None:
        return OUTSIDE
    told = [(reply[attribute], attribute) for attribute in ANSWERS if reply[attribute]]
    answer = (1 if told[0] == PROMPTS[prompt] else -1) if told else 0
    remarks = sum(TONE[adjective] for adjective in re.findall(r"a (\w+) piece", reply["remarks"]))
    manners = TONE.get(reply["opening"], 0) + TONE.get(reply["closing"], 0) + max(-1, min(1, remarks))
    return answer + 0.5 * manners


def converse(prompt: str, right: float, draw: random.Random) -> str:
    """A reply as the conversations have it: a mood colours opening, remarks and closing; `right` is how often the
    answer is about the thing asked for (else "I do not know." in 1 of 4 cases, and another thing in 3)."""
    mood = draw.choices((1, 0, -1), (0.3, 0.4, 0.3))[0]

    def tone() -> int:
        return mood if draw.random() < 0.7 else draw.choice((1, 0, -1))

    parts = [draw.choice(OPENINGS[tone()])] if draw.random() < 0.7 else []
    item, attribute = PROMPTS[prompt]
    case = draw.random()
    if case >= right:
        item, attribute = draw.choice([(i, a) for i in ITEMS for a in ANSWERS if (i, a) != PROMPTS[prompt]])
    form, values = ANSWERS[attribute]
    parts.append(UNSURE if case >= right + 0.75 * (1 - right) else form.format(item, draw.choice(values)))
    while draw.random() < 0.45:
        parts.append(REMARK.format(draw.choice(ADJECTIVES[tone()])))
    if draw.random() < 0.7:
        parts.append(draw.choice(CLOSINGS[tone()]))
    return " ".join(parts)


@dataclass(frozen=True)
class Size:
    """How much of the world is built. The small one is for tests: it runs every stage, and its model is poor."""

    hidden: int = 128
    steps: int = 800  # of the supervised stage, 32 conversations each
    learning_rate: float = 4e-3
    train_prompts: int = 700
    train_samples: int = 6
    train_pairs: int = 5  # per prompt
    eval_prompts: int = 80
    eval_samples: int = 8
    eval_pairs: int = 4


SMALL = Size(
    hidden=64, steps=130, learning_rate=8e-3, train_prompts=40, train_samples=4, train_pairs=3,
    eval_prompts=16, eval_samples=4, eval_pairs=2,
)  # fmt: skip
BATCH = 32  # conversations per supervised step
# Copying the item asked for is learned all at once, and only from conversations that mostly do it; the last part of
# the supervised stage then brings the share of right answers down, so that preferences have something to improve.
RIGHT_FIRST, RIGHT_LAST, FIRST_SHARE = 0.9, 0.6, 0.65

# ChatML, but with the newline before the next turn and not after <|im_end|>: behind it, it would be a token of the
# completion that no model samples, on which a preference loss can move probability without changing any text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)


def make(folder: Path, seed: int, *, small: bool = False) -> None:
    """Write `folder/model` and `folder/pairs/{train,eval}.jsonl`, the same for the same seed and number of threads.

    The eval pairs are about prompts that neither the model nor the train pairs have seen. About a minute on one core.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from .sampling import generate

    disable_progress_bar()  # of saving one small file
    size = SMALL if small else Size()
    draw = random.Random(seed)
    prompts = draw.sample(list(PROMPTS), len(PROMPTS))
    held_out, seen = prompts[: size.eval_prompts], prompts[size.eval_prompts :]
    n = size.steps * BATCH
    rights = (RIGHT_FIRST if k < FIRST_SHARE * n else RIGHT_LAST for k in range(n))
    corpus = [(prompt := draw.choice(seen), converse(prompt, right, draw)) for right in rights]
    tokenizer = _tokenizer(corpus)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        model = _model(tokenizer, size)
        with _progress("supervised stage") as advance:
            _supervise(model, tokenizer, corpus, size, draw, advance)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "pairs").mkdir()
    wanted = {
        "train": (seen[: size.train_prompts], size.train_samples, size.train_pairs),
        "eval": (held_out, size.eval_samples, size.eval_pairs),
    }
    for offset, (split, (texts, samples, per_prompt)) in enumerate(wanted.items()):
        asked, drawn = [_asked(text) for text in texts], 2 * seed + offset
        with _progress(f"{split} pairs") as advance:
            how: dict[str, Any] = {"samples": samples, "max_new_tokens": 64, "batch_size": 256, "progress": advance}
            replies = generate(model, tokenizer, asked, seed=drawn, **how)
        rows, _ = preference_pairs(asked, replies, reward, per_prompt=per_prompt, seed=drawn)
        file = folder / "pairs" / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _tokenizer(corpus: list[tuple[str, str]]) -> Any:
    """Byte-level BPE, large enough for one token per word: a model this small should not also have to spell."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["user\nassistant\n", *(text for pair in corpus for text in pair)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=special[0], eos_token=special[2], additional_special_tokens=[special[1]],
        chat_template=CHAT_TEMPLATE, model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _model(tokenizer: Any, size: Size) -> Any:
    """A Llama of two layers with fresh weights; 0.47 M parameters at the full size."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size.hidden, intermediate_size=3 * size.hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, **special,
    ))  # fmt: skip
    model.generation_config = GenerationConfig(do_sample=True, **special)
    return model


def _supervise(
    model: Any, tokenizer: Any, corpus: list[tuple[str, str]], size: Size, draw: random.Random, advance: Progress
) -> None:
    """Next-token cross-entropy on the replies, in about the order of the corpus; AdamW and a cosine schedule."""
    import torch
    from torch.nn.functional import cross_entropy

    openings = tokenizer.apply_chat_template(
        [_asked(prompt) for prompt, _ in corpus], tokenize=False, add_generation_prompt=True
    )
    heads = tokenizer(openings, add_special_tokens=False)["input_ids"]
    tails = tokenizer([reply + tokenizer.eos_token for _, reply in corpus], add_special_tokens=False)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, size.learning_rate, total_steps=size.steps + 1, pct_start=0.05, cycle_momentum=False
    )
    lengths = [len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)]
    for step, batch in enumerate(_batches(lengths, draw)):
        width = max(lengths[k] for k in batch)
        ids = torch.full((BATCH, width), tokenizer.pad_token_id)
        labels = torch.full((BATCH, width), -100)
        for row, k in enumerate(batch):
            ids[row, : lengths[k]] = torch.tensor(heads[k] + tails[k])
            labels[row, len(heads[k]) : lengths[k]] = torch.tensor(tails[k])
        # Padding lies to the right, where causal attention does not look, so no mask is needed.
        predicted = labels[:, 1:] != -100
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][predicted]
        loss = cross_entropy(model.lm_head(hidden), labels[:, 1:][predicted])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        advance(step + 1, size.steps)


def _batches(lengths: list[int], draw: random.Random) -> Iterator[list[int]]:
    """Batches of neighbours in length, from consecutive blocks of the corpus so that its order is kept roughly."""
    for start in range(0, len(lengths), 16 * BATCH):
        block = sorted(range(start, min(start + 16 * BATCH, len(lengths))), key=lengths.__getitem__)
        batches = [block[k : k + BATCH] for k in range(0, len(block), BATCH)]
        yield from draw.sample(batches, len(batches))


def _asked(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@contextmanager
def _progress(stage: str) -> Iterator[Progress]:
    """Gives `advance(done, total)`: a bar on standard error, or one line at the end where that is no terminal."""
    from rich import console, progress

    with progress.Progress(console=console.Console(stderr=True)) as bar:
        task = bar.add_task(f"prepare: {stage}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
