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
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import RecipeError

if TYPE_CHECKING:
    from .progress import Stage

# ------------------------------------------------------------------------------------------------------------ the words

ITEMS = (
    "lamp",
    "chair",
    "clock",
    "mirror",
    "vase",
    "carpet",
    "kettle",
    "violin",
    "basket",
    "painting",
    "candle",
    "mug",
    "globe",
    "drum",
    "sofa",
    "teapot",
)
GREETINGS = ("", "Hello. ", "Good morning. ", "Hi there. ", "Excuse me. ")


class Topic(NamedTuple):
    """An attribute of an item that can be asked about."""

    questions: tuple[str, ...]  # of an item
    answer: str  # of an item and a value
    values: tuple[str, ...]


TOPICS = {
    "colour": Topic(
        questions=(
            "What colour is the {}?",
            "Which colour does the {} have?",
            "Tell me the colour of the {}.",
            "What is the colour of the {}?",
        ),
        answer="The {} is {}.",
        values=("red", "blue", "green", "white", "black", "yellow"),
    ),
    "place": Topic(
        questions=(
            "Where is the {}?",
            "Where can I find the {}?",
            "Tell me where the {} is.",
            "Which room is the {} in?",
        ),
        answer="You will find the {} in the {}.",
        values=("attic", "cellar", "kitchen", "hall", "garden", "window"),
    ),
    "price": Topic(
        questions=(
            "How much is the {}?",
            "What does the {} cost?",
            "Tell me the price of the {}.",
            "What is the price of the {}?",
        ),
        answer="The {} costs {} coins.",
        values=("two", "three", "five", "seven", "nine", "twelve"),
    ),
}
UNSURE = "I do not know."

KIND, FLAT, GRUMPY = 1, 0, -1  # the tone of a part of a reply, each worth half a point
# Part of a reply -> tone -> the sentences that it can be.
MANNERS: dict[str, dict[int, tuple[str, ...]]] = {
    "opening": {
        KIND: ("Certainly.", "With pleasure.", "Of course, my friend."),
        FLAT: ("Well.", "So."),
        GRUMPY: ("Not again.", "What now?", "You again."),
    },
    "remark": {
        KIND: (
            "It is a lovely piece.",
            "It is a splendid piece.",
            "It is a charming piece.",
            "It is a graceful piece.",
        ),
        FLAT: (
            "It is a small piece.",
            "It is a plain piece.",
            "It is a heavy piece.",
            "It is a modern piece.",
        ),
        GRUMPY: (
            "It is a dreadful piece.",
            "It is a shabby piece.",
            "It is a hideous piece.",
            "It is a useless piece.",
        ),
    },
    "closing": {
        KIND: ("Have a wonderful day.", "I am glad to help.", "Come back soon."),
        FLAT: ("That is all.", "Good day."),
        GRUMPY: ("Now leave me alone.", "Stop wasting my time.", "Do not come back."),
    },
}
OUTSIDE = -2.5  # the reward of a reply that is no reply of this world; the worst that is one scores the same


def _every_prompt() -> dict[str, tuple[str, str]]:
    """Every prompt of the world -> (item, attribute): 960 of them, in an order that draws depend on."""
    prompts = {}
    for item in ITEMS:
        for attribute, topic in TOPICS.items():
            for greeting in GREETINGS:
                for question in topic.questions:
                    prompts[greeting + question.format(item)] = (item, attribute)
    return prompts


def _every_sentence() -> dict[str, tuple[str, Any]]:
    """Every sentence of a reply -> its part, and its tone or, of an answer, the item and attribute that it is about."""
    sentences: dict[str, tuple[str, Any]] = {UNSURE: ("answer", None)}
    for part, tones in MANNERS.items():
        for tone, texts in tones.items():
            for text in texts:
                sentences[text] = (part, tone)
    for item in ITEMS:
        for attribute, topic in TOPICS.items():
            for value in topic.values:
                sentences[topic.answer.format(item, value)] = ("answer", (item, attribute))
    return sentences


PROMPTS = _every_prompt()
SENTENCES = _every_sentence()


# ----------------------------------------------------------------------------------------------------------- the truth


def parse(completion: str) -> list[tuple[str, Any]]:
    """The part and the meaning of each sentence; nothing when the grammar cannot produce the reply, to the letter."""
    sentences = re.split(r"(?<=[.?]) ", completion)
    parts = [SENTENCES.get(sentence, ("?", None)) for sentence in sentences]
    order = " ".join(part for part, _ in parts)
    if re.fullmatch("(opening )?answer( remark)*( closing)?", order):
        return parts
    return []


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
    parts = parse(completion)
    if not parts:
        return OUTSIDE

    [told] = [about for part, about in parts if part == "answer"]
    if told == PROMPTS[prompt]:
        answer = 1.0
    elif told is None:
        answer = 0.0
    else:
        answer = -1.0

    manners = 0
    for polite_part in MANNERS:
        tones = [tone for part, tone in parts if part == polite_part]
        manners += max(-1, min(1, sum(tones)))
    return answer + 0.5 * manners


# --------------------------------------------------------------------------------------------------- the conversations


def converse(prompt: str, right: float, draw: random.Random) -> str:
    """A reply as the conversations have it: a mood colours opening, remarks and closing.

    `right` is how often the answer is about the thing asked for; else it is "I do not know." in 1 of 4 cases, and
    about another thing in 3.
    """
    [mood] = draw.choices((KIND, FLAT, GRUMPY), (0.3, 0.4, 0.3))

    def say(part: str) -> str:
        tone = mood if draw.random() < 0.7 else draw.choice((KIND, FLAT, GRUMPY))
        return draw.choice(MANNERS[part][tone])

    parts = []
    if draw.random() < 0.7:
        parts.append(say("opening"))
    parts.append(_answer(prompt, right, draw))
    while draw.random() < 0.45:
        parts.append(say("remark"))
    if draw.random() < 0.7:
        parts.append(say("closing"))
    return " ".join(parts)


def _answer(prompt: str, right: float, draw: random.Random) -> str:
    """About the thing asked for, about another one, or unsure."""
    asked = PROMPTS[prompt]
    case = draw.random()
    if case < right:
        item, attribute = asked
    else:  # drawn for an unsure answer too, which does not use it: a seed makes the same world as ever
        others = [(item, attribute) for item in ITEMS for attribute in TOPICS if (item, attribute) != asked]
        item, attribute = draw.choice(others)

    unsure_from = right + 0.75 * (1 - right)
    if case >= unsure_from:
        return UNSURE
    topic = TOPICS[attribute]
    return topic.answer.format(item, draw.choice(topic.values))


# ---------------------------------------------------------------------------------------------- the model and the pairs


class Share(NamedTuple):
    """What one split is made from."""

    prompts: int
    samples: int  # replies to each prompt
    pairs: int  # at most, from the replies to one prompt


class Size(NamedTuple):
    """How large a world is."""

    hidden: int = 128
    steps: int = 800  # of the supervised stage
    learning_rate: float = 4e-3
    train: Share = Share(prompts=700, samples=6, pairs=5)
    eval: Share = Share(prompts=80, samples=8, pairs=4)


# For tests: it runs every stage, and its model is poor.
SMALL = Size(
    hidden=64,
    steps=130,
    learning_rate=8e-3,
    train=Share(prompts=40, samples=4, pairs=3),
    eval=Share(prompts=16, samples=4, pairs=2),
)
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
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from .progress import Stage

    disable_progress_bar()  # of saving one small file
    size = SMALL if small else Size()
    draw = random.Random(seed)
    prompts = draw.sample(list(PROMPTS), len(PROMPTS))
    held_out, seen = prompts[: size.eval.prompts], prompts[size.eval.prompts :]
    corpus = _conversations(seen, size.steps * BATCH, draw)
    tokenizer = _tokenizer(corpus)

    console = Console(stderr=True)
    with Stage(console, "Teaching the model to answer", unit="batches") as stage, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        model = _supervised(tokenizer, corpus, size, draw, stage)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    (folder / "pairs").mkdir()
    with Stage(console, "Answers for the train pairs", unit="answers") as stage:
        train = _pairs(model, tokenizer, seen, size.train, 2 * seed, stage)
    _write(folder / "pairs" / "train.jsonl", train)
    with Stage(console, "Answers for the held-out pairs", unit="answers") as stage:
        evaluation = _pairs(model, tokenizer, held_out, size.eval, 2 * seed + 1, stage)
    _write(folder / "pairs" / "eval.jsonl", evaluation)


def _conversations(prompts: list[str], count: int, draw: random.Random) -> list[tuple[str, str]]:
    """(prompt, reply), in the order of training.

    Copying the item asked for is learned all at once, and only from conversations that mostly do it; the last part
    then brings the share of right answers down, so that preferences have something to improve.
    """
    corpus = []
    for number in range(count):
        right = 0.9 if number < 0.65 * count else 0.6
        prompt = draw.choice(prompts)
        corpus.append((prompt, converse(prompt, right, draw)))
    return corpus


def _pairs(
    model: Any, tokenizer: Any, prompts: list[str], share: Share, seed: int, stage: "Stage"
) -> list[dict[str, Any]]:
    """Preference pairs, ranked by the reward, from replies that the model gives to the first of the prompts."""
    from .data.ranked_pairs import by_last_question, preference_pairs
    from .models.generate import generate

    questions = [_question(prompt) for prompt in prompts[: share.prompts]]
    replies = generate(
        model,
        tokenizer,
        questions,
        samples=share.samples,
        max_new_tokens=64,
        batch_size=256,
        seed=seed,
        progress=stage.show,
    )
    rows, _ = preference_pairs(questions, replies, by_last_question(reward), per_prompt=share.pairs, seed=seed)
    return rows


def _question(prompt: str) -> list[dict[str, str]]:
    """A conversation that waits for its reply."""
    return [{"role": "user", "content": prompt}]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _tokenizer(corpus: list[tuple[str, str]]) -> Any:
    """Byte-level BPE, large enough for one token per word: a model this small should not also have to spell."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pad, start, end = "<|pad|>", "<|im_start|>", "<|im_end|>"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[pad, start, end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = ["user\nassistant\n"]  # the names of the roles, as the chat template writes them
    for prompt, reply in corpus:
        texts += [prompt, reply]
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=pad,
        eos_token=end,
        additional_special_tokens=[start],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _supervised(tokenizer: Any, corpus: list[tuple[str, str]], size: Size, draw: random.Random, stage: "Stage") -> Any:
    """A Llama of two layers (0.47 M parameters at full size), trained on the replies in about the corpus' order."""
    import torch
    from torch import nn, optim

    model = _untrained(tokenizer, size)
    adam = optim.AdamW(model.parameters(), lr=size.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    rate = optim.lr_scheduler.OneCycleLR(adam, size.learning_rate, size.steps + 1, pct_start=0.05, cycle_momentum=False)

    rows, targets = [], []  # tokens of prompt and reply; the same with -100 in place of the prompt's
    questions = [_question(prompt) for prompt, _ in corpus]
    replies = [reply + tokenizer.eos_token for _, reply in corpus]
    prompt_ids = tokenizer.apply_chat_template(questions, add_generation_prompt=True, return_dict=False)
    reply_ids = tokenizer(replies, add_special_tokens=False)["input_ids"]
    for prompt, reply in zip(prompt_ids, reply_ids, strict=True):
        rows.append(torch.tensor(prompt + reply))
        targets.append(torch.tensor([-100] * len(prompt) + reply))

    batches = list(_batches(rows, draw))
    for number, batch in enumerate(batches, 1):
        # Padding lies to the right, where causal attention does not look, so no mask is needed.
        ids = nn.utils.rnn.pad_sequence([rows[k] for k in batch], True, tokenizer.pad_token_id)
        labels = nn.utils.rnn.pad_sequence([targets[k] for k in batch], True, -100)[:, 1:]
        scored = labels != -100
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][scored]
        loss = nn.functional.cross_entropy(model.lm_head(hidden), labels[scored])
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        rate.step()
        stage.show(number, len(batches))
    return model


def _untrained(tokenizer: Any, size: Size) -> Any:
    """The model with random weights, which samples when it is asked to generate."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, **special)
    return model


def _batches(rows: list[Any], draw: random.Random) -> list[list[int]]:
    """Indices of rows, BATCH of neighbours in length at a time, from blocks so that the rows' order is about kept."""
    batches: list[list[int]] = []
    for start in range(0, len(rows), 16 * BATCH):
        block = list(range(start, min(start + 16 * BATCH, len(rows))))
        block.sort(key=lambda k: len(rows[k]))
        neighbours = [block[k : k + BATCH] for k in range(0, len(block), BATCH)]
        batches += draw.sample(neighbours, len(neighbours))
    return batches
