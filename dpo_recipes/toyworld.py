"""A small world with a known truth: a shop assistant of mixed manners, for the quickstart and the tests.

A prompt is `[greeting] question about the colour, place or price of an item`; a reply follows the grammar
`[opening] answer [remark]* [closing]`. The reward of a reply is computed exactly by parsing it, so that "did training
help, and how much could it have helped" has an answer. `make` builds the rest from a seed: conversations, a tokenizer,
a small Llama that learns to answer as the conversations do, and preference pairs ranked from that model's own replies.
"""

import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

from .errors import RecipeError

ITEMS = ("lamp", "chair", "clock", "mirror", "vase", "carpet", "kettle", "violin",
         "basket", "painting", "candle", "mug", "globe", "drum", "sofa", "teapot")  # fmt: skip
GREETINGS = ("", "Hello. ", "Good morning. ", "Hi there. ", "Excuse me. ")
# What can be asked about an item -> the questions, the form of an answer, and what may fill it.
TOPICS = {
    "colour": (("What colour is the {}?", "Which colour does the {} have?", "Tell me the colour of the {}.",
        "What is the colour of the {}?"), "The {} is {}.", ("red", "blue", "green", "white", "black", "yellow")),
    "place": (("Where is the {}?", "Where can I find the {}?", "Tell me where the {} is.", "Which room is the {} in?"),
        "You will find the {} in the {}.", ("attic", "cellar", "kitchen", "hall", "garden", "window")),
    "price": (("How much is the {}?", "What does the {} cost?", "Tell me the price of the {}.",
        "What is the price of the {}?"), "The {} costs {} coins.", ("two", "three", "five", "seven", "nine", "twelve")),
}  # fmt: skip
UNSURE = "I do not know."
# Part of a reply -> its tone (kind 1, flat 0, grumpy -1; each is worth half a point) -> its sentences.
MANNERS: dict[str, dict[int, tuple[str, ...]]] = {
    "opening": {1: ("Certainly.", "With pleasure.", "Of course, my friend."), 0: ("Well.", "So."),
                -1: ("Not again.", "What now?", "You again.")},
    "remark": {1: tuple(f"It is a {word} piece." for word in ("lovely", "splendid", "charming", "graceful")),
               0: tuple(f"It is a {word} piece." for word in ("small", "plain", "heavy", "modern")),
               -1: tuple(f"It is a {word} piece." for word in ("dreadful", "shabby", "hideous", "useless"))},
    "closing": {1: ("Have a wonderful day.", "I am glad to help.", "Come back soon."), 0: ("That is all.", "Good day."),
                -1: ("Now leave me alone.", "Stop wasting my time.", "Do not come back.")},
}  # fmt: skip
OUTSIDE = -2.5  # the reward of a reply that is no reply of this world; the worst that is one scores the same

# Every prompt of the world -> (item, attribute): 960 of them.
PROMPTS = {g + q.format(i): (i, a) for i in ITEMS for a, (qs, _, _) in TOPICS.items() for g in GREETINGS for q in qs}
# Every sentence of a reply -> its part, and its tone or what it is about.
SENTENCES: dict[str, tuple[str, Any]] = {
    **{text: (part, tone) for part, tones in MANNERS.items() for tone, texts in tones.items() for text in texts},
    **{form.format(i, v): ("answer", (i, a)) for i in ITEMS for a, (_, form, values) in TOPICS.items() for v in values},
    UNSURE: ("answer", None),
}


def parse(completion: str) -> list[tuple[str, Any]]:
    """The part and the meaning of each sentence; nothing when the grammar cannot produce the reply, to the letter."""
    parts = [SENTENCES.get(sentence, ("?", None)) for sentence in re.split(r"(?<=[.?]) ", completion)]
    return parts if re.fullmatch("(opening )?answer( remark)*( closing)?", " ".join(part for part, _ in parts)) else []


def in_grammar(prompt: str, completion: str) -> bool:
    """Whether a reply is one of this world, be it right or wrong."""
    return bool(parse(completion))


def reward(prompt: str, completion: str) -> float:
    """The exact reward of a reply, between -2.5 and 2.5.

    The answer is about the item and attribute asked for: +1; "I do not know.": 0; about another: -1. The opening, the
    closing, and the sum of the remarks clipped to one: +0.5 for a kind tone, -0.5 for a grumpy one. A reply outside
    the grammar: -2.5. The value told (red, attic, five) does not matter: this world has no facts to memorise.
    """
    if prompt not in PROMPTS:
        raise RecipeError(f"{prompt!r} is no prompt of this world, so a reply has no reward: see toyworld.PROMPTS.")
    if not (parts := parse(completion)):
        return OUTSIDE
    [told] = [about for part, about in parts if part == "answer"]
    answer = 0 if told is None else 1 if told == PROMPTS[prompt] else -1
    manners = sum(max(-1, min(1, sum(tone for of, tone in parts if of == part))) for part in MANNERS)
    return answer + 0.5 * manners


def converse(prompt: str, right: float, draw: random.Random) -> str:
    """A reply as the conversations have it: a mood colours opening, remarks and closing; `right` is how often the
    answer is about the thing asked for (else "I do not know." in 1 of 4 cases, and another thing in 3)."""
    mood = draw.choices((1, 0, -1), (0.3, 0.4, 0.3))[0]

    def say(part: str) -> str:
        return draw.choice(MANNERS[part][mood if draw.random() < 0.7 else draw.choice((1, 0, -1))])

    parts = [say("opening")] if draw.random() < 0.7 else []
    case = draw.random()
    others = [(i, a) for i in ITEMS for a in TOPICS if (i, a) != PROMPTS[prompt]]
    item, attribute = PROMPTS[prompt] if case < right else draw.choice(others)
    _, form, values = TOPICS[attribute]
    parts.append(UNSURE if case >= right + 0.75 * (1 - right) else form.format(item, draw.choice(values)))
    while draw.random() < 0.45:
        parts.append(say("remark"))
    parts += [say("closing")] if draw.random() < 0.7 else []
    return " ".join(parts)


class Size(NamedTuple):
    hidden: int = 128
    steps: int = 800  # of the supervised stage
    learning_rate: float = 4e-3
    train: tuple[int, int, int] = (700, 6, 5)  # prompts, replies sampled to each, pairs made of these
    eval: tuple[int, int, int] = (80, 8, 4)


SMALL = Size(64, 130, 8e-3, train=(40, 4, 3), eval=(16, 4, 2))  # for tests: runs every stage, and its model is poor
BATCH = 32  # conversations per supervised step
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
    from rich import console, progress
    from transformers.utils.logging import disable_progress_bar

    from .data.ranked_pairs import preference_pairs
    from .models.generate import generate

    disable_progress_bar()  # of saving one small file
    size, draw = SMALL if small else Size(), random.Random(seed)
    prompts = draw.sample(list(PROMPTS), len(PROMPTS))
    held_out, seen = prompts[: size.eval[0]], prompts[size.eval[0] :]
    n = size.steps * BATCH
    # Copying the item asked for is learned all at once, and only from conversations that mostly do it; the last part
    # then brings the share of right answers down, so that preferences have something to improve.
    corpus = [(prompt := draw.choice(seen), converse(prompt, 0.9 if k < 0.65 * n else 0.6, draw)) for k in range(n)]
    tokenizer = _tokenizer(corpus)
    with progress.Progress(console=console.Console(stderr=True)) as bar:
        bar.add_task("prepare: supervised stage", total=None)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone
            model = _supervised(tokenizer, corpus, size, draw, bar)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        (folder / "pairs").mkdir()
        wanted = (("train", seen, size.train, 2 * seed), ("eval", held_out, size.eval, 2 * seed + 1))
        for split, texts, (count, samples, per_prompt), key in wanted:
            bar.add_task(f"prepare: {split} pairs", total=None)
            asked = [[{"role": "user", "content": text}] for text in texts[:count]]
            replies = generate(
                model, tokenizer, asked, samples=samples, max_new_tokens=64, batch_size=256, seed=key,
                progress=lambda done, total: bar.update(bar.task_ids[-1], completed=done, total=total),
            )  # fmt: skip
            rows, _ = preference_pairs(asked, replies, reward, per_prompt=per_prompt, seed=key)
            (folder / "pairs" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _tokenizer(corpus: list[tuple[str, str]]) -> Any:
    """Byte-level BPE, large enough for one token per word: a model this small should not also have to spell."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pad, start, end = special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    how = trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["user\nassistant\n", *(text for pair in corpus for text in pair)], how)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, eos_token=end, additional_special_tokens=[start],
        chat_template=CHAT_TEMPLATE, model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _supervised(tokenizer: Any, corpus: list[tuple[str, str]], size: Size, draw: random.Random, bar: Any) -> Any:
    """A Llama of two layers (0.47 M parameters at full size), trained on the replies in about the corpus' order."""
    import torch
    from torch import nn, optim
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size.hidden, intermediate_size=3 * size.hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, **special,
    ))  # fmt: skip
    model.generation_config = GenerationConfig(do_sample=True, **special)
    adam = optim.AdamW(model.parameters(), lr=size.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    rate = optim.lr_scheduler.OneCycleLR(adam, size.learning_rate, size.steps + 1, pct_start=0.05, cycle_momentum=False)
    asked = [[{"role": "user", "content": prompt}] for prompt, _ in corpus]
    heads = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    tails = tokenizer([reply + tokenizer.eos_token for _, reply in corpus], add_special_tokens=False)["input_ids"]
    rows = [torch.tensor(head + tail) for head, tail in zip(heads, tails, strict=True)]
    targets = [torch.tensor([-100] * len(head) + tail) for head, tail in zip(heads, tails, strict=True)]
    batches: list[list[int]] = []  # of neighbours in length, from blocks of the corpus so that its order is about kept
    for start in range(0, len(rows), 16 * BATCH):
        block = sorted(range(len(rows))[start : start + 16 * BATCH], key=lambda k: len(rows[k]))
        neighbours = [block[k : k + BATCH] for k in range(0, len(block), BATCH)]
        batches += draw.sample(neighbours, len(neighbours))
    for batch in bar.track(batches, task_id=bar.task_ids[-1]):
        # Padding lies to the right, where causal attention does not look, so no mask is needed.
        ids = nn.utils.rnn.pad_sequence([rows[k] for k in batch], True, tokenizer.pad_token_id)
        labels = nn.utils.rnn.pad_sequence([targets[k] for k in batch], True, -100)[:, 1:]
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][labels != -100]
        loss = nn.functional.cross_entropy(model.lm_head(hidden), labels[labels != -100])
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        rate.step()
    return model
