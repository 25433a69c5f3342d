"""A model that scores answers: a sequence classifier with one output."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ..data.replies import Messages
from ..errors import RecipeError
from ..recipe.judges import RewardModel
from .checkpoint import refuse_other_weights, without_load_report
from .generate import Progress, padded
from .limits import longest_usable
from .loading_errors import explained

BATCH = 16  # answers that are scored together


def refuse_no_reward_model(reward: RewardModel) -> None:
    """RecipeError where the configuration, which is all that is read, is not that of a model with one output."""
    with explained("reward model", reward.path):
        config = AutoConfig.from_pretrained(reward.path, revision=reward.revision)
    if config.num_labels != 1:
        raise RecipeError(
            f"reward: {reward.path} has {config.num_labels} outputs, and a reward model has one, the reward "
            "(num_labels=1 in its config.json)."
        )


class Scorer:
    """A loaded reward model: the score of each answer."""

    def __init__(self, reward: RewardModel, device: Any = "cpu"):
        """RecipeError where it cannot be loaded, and where its head would be random numbers."""
        refuse_no_reward_model(reward)
        self.path = reward.path
        with explained("reward model", reward.path), without_load_report():
            self.tokenizer: Any = AutoTokenizer.from_pretrained(reward.path, revision=reward.revision)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                reward.path,
                revision=reward.revision,
                dtype="auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
        model, report = loaded
        refuse_other_weights(model, report, reward.path)
        self.model = model.to(device).eval()
        self.positions = longest_usable(model.config)
        # The head reads the last token that is not this one, alone as in a batch.
        self.padding_token = model.config.get_text_config().pad_token_id

    @torch.no_grad()
    def scores(
        self,
        prompts: list[Messages | str],
        completions: list[str],
        progress: Progress = lambda done, total: None,
    ) -> list[float]:
        """The score of each completion to its prompt, in order: the whole conversation is read.

        Where the tokenizer has no chat template, the prompt's last question and the answer are, as a pair of texts.
        """
        rows = [self._ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        longest_first = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        batch_size = 1 if self.padding_token is None else BATCH
        values = [0.0] * len(rows)
        for start in range(0, len(rows), batch_size):
            batch = longest_first[start : start + batch_size]
            ids, mask = padded([rows[index] for index in batch], self.padding_token or 0, "right")
            device = self.model.device
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            for index, value in zip(batch, logits.float()[:, 0].tolist(), strict=True):
                values[index] = value
            progress(start + len(batch), len(rows))
        return values

    def _ids(self, prompt: Messages | str, completion: str) -> list[int]:
        if self.tokenizer.chat_template is not None:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            reply = {"role": "assistant", "content": completion}
            ids = list(self.tokenizer.apply_chat_template([*messages, reply], return_dict=False))
        else:
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            ids = list(self.tokenizer(text, completion)["input_ids"])
        if self.positions is not None and len(ids) > self.positions:
            raise RecipeError(
                f"reward: {self.path} reads {self.positions:,} tokens at most, and a prompt with its answer has "
                f"{len(ids):,}. Take a reward model that reads more, or shorter prompts."
            )
        return ids
