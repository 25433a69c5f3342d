"""Prompts that are asked, a reference that answers, and what answers are scored by."""

from __future__ import annotations

from contextlib import contextmanager

from datasets import Dataset
from making import said, user

from dpo_recipes.models.generate import prompt_ids

QUESTIONS = ["where is the lamp?", "hi", "how many coins are red?"]
ASKED = [[user(question)] for question in QUESTIONS]


def ids_of(tokenizer, prompts) -> list[list[int]]:
    return [prompt_ids(tokenizer, prompt) for prompt in prompts]


def with_held_out_prompts(trainer, prompts):
    """The trainer as it is when its evaluation pairs are these prompts."""
    ids = ids_of(trainer.processing_class, prompts)
    trainer.eval_dataset = Dataset.from_dict({"prompt": prompts, "prompt_ids": ids})
    return trainer


def pairs_with_prompts_of(*lengths: int) -> Dataset:
    """Pairs of different prompts of so many tokens."""
    answers = [[said("yes")]] * len(lengths)
    return Dataset.from_dict(
        {
            "prompt": [[user(f"Question {number}")] for number in range(len(lengths))],
            "prompt_ids": [[number] * length for number, length in enumerate(lengths)],
            "chosen": answers,
            "rejected": answers,
        }
    )


class Lent:
    """A reference that is always the same model."""

    def __init__(self, model):
        self._model = model

    @contextmanager
    def model(self):
        yield self._model


def length(prompt: str, completion: str) -> float:
    return float(len(completion))
