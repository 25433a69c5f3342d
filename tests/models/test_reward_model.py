"""A reward model scores whole conversations, alone as in a batch; what is none is refused."""

from __future__ import annotations

import pytest
import torch
from making import make_model, make_reward_model, make_tokenizer, message

from dpo_recipes import RecipeError, RewardModel
from dpo_recipes.models.reward_model import Scorer, refuse_no_reward_model

PROMPT = [message("system", "Be short."), message("user", "Where is the lamp?")]


@pytest.mark.parametrize("padding", [True, False])
@torch.no_grad()
def test_each_answer_gets_the_score_of_its_whole_conversation_alone_as_in_a_batch(tmp_path, padding):
    folder = make_reward_model(tmp_path, **({} if padding else {"pad_token_id": None}))
    scorer = Scorer(RewardModel(str(folder)))
    completions = ["in the attic", "", "I do not know where it could be, or whether there is one at all.", "here"]
    scores = scorer.scores([PROMPT] * 4, completions)
    assert len(set(scores)) == 4

    tokenizer = make_tokenizer()
    for completion, score in zip(completions, scores, strict=True):
        ids = tokenizer.apply_chat_template([*PROMPT, message("assistant", completion)], return_dict=False)
        assert scorer.model(torch.tensor([ids])).logits.item() == pytest.approx(score, abs=1e-5)
    assert scorer.scores([PROMPT[1:]], ["here"]) != scores[3:]  # the system message is read


def test_without_a_chat_template_the_question_and_the_answer_are_a_pair_of_texts(tmp_path):
    scorer = Scorer(RewardModel(str(make_reward_model(tmp_path, template=None))))
    of_messages, of_text = scorer.scores([PROMPT, "Where is the lamp?"], ["here", "here"])
    assert of_messages == of_text


def test_what_is_no_reward_model_is_refused(tmp_path):
    two = make_reward_model(tmp_path / "two", labels=2)
    with pytest.raises(RecipeError, match="has 2 outputs, and a reward model has one"):
        refuse_no_reward_model(RewardModel(str(two)))
    language_model = make_model(tmp_path / "lm", num_labels=1)
    with pytest.raises(RecipeError, match="score.weight"):
        Scorer(RewardModel(str(language_model)))
    with pytest.raises(RecipeError, match="nope"):
        refuse_no_reward_model(RewardModel(str(tmp_path / "nope")))
    short = Scorer(RewardModel(str(make_reward_model(tmp_path / "short", max_position_embeddings=16))))
    with pytest.raises(RecipeError, match="reads 16 tokens at most, and a prompt with its answer has"):
        short.scores([PROMPT], ["here"])
