"""Tokenizers: the chat template that is used, the one that is saved, and what is refused."""

from __future__ import annotations

import pytest
from making import DATED, load_policy, make_model, make_tokenizer, recipe_for
from transformers import AutoTokenizer

from dpo_recipes import Data, RecipeError
from dpo_recipes.models.tokenizer import load_tokenizer, need_embeddings

ASK = [{"role": "user", "content": "where?"}]


def rendered(tokenizer, **kwargs) -> str:
    return tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True, **kwargs)


def test_a_pinned_date_makes_every_day_the_same_and_is_not_saved(tmp_path):
    folder = make_model(tmp_path / "dated", template=DATED)
    loaded = load_tokenizer(recipe_for(folder, data=Data("x", template_date="2025-07-08")), str(folder))
    assert "Today Date: 08 July 2025\n" in rendered(loaded.tokenizer)
    loaded.save(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.chat_template == DATED and "08 July 2025" in rendered(loaded.tokenizer)


def test_what_a_template_does_not_read_is_said(tiny):
    said: list[str] = []
    data = Data("x", template_date="2025-07-08", chat_template_kwargs={"enable_thinking": False})
    load_tokenizer(recipe_for(tiny(), data=data), str(tiny()), said.append)
    assert said == [
        "data.template_date=2025-07-08 changes nothing: this chat template prints no date.",
        "data.chat_template_kwargs: this chat template does not read enable_thinking.",
    ]


def test_a_recipe_may_bring_the_template_a_base_model_lacks(tmp_path):
    folder = make_model(tmp_path / "base", template=None)
    bare = load_tokenizer(recipe_for(folder), str(folder))
    assert bare.template is None
    template = "{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    given = load_tokenizer(recipe_for(folder, data=Data("x", chat_template=template)), str(folder))
    assert rendered(given.tokenizer) == "where?!"
    given.save(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == template
    with pytest.raises(RecipeError, match="data.template_date is for a chat template, and the tokenizer .* has none"):
        load_tokenizer(recipe_for(folder, data=Data("x", template_date="2025-07-08")), str(folder))


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="has no end token"):
        load_tokenizer(recipe_for(tmp_path), str(tmp_path))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny):
    small = tiny(vocab_size=259)
    recipe = recipe_for(small)
    with pytest.raises(RecipeError, match="The tokenizer has 260 tokens, but the model 259 embeddings"):
        need_embeddings(load_policy(small), load_tokenizer(recipe, str(small)).tokenizer)
