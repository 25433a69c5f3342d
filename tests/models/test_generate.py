"""Sampled and greedy replies of a tiny model, against its own logits."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_recipes.errors import RecipeError
from dpo_recipes.models.generate import end_tokens, generate, prompt_ids

QUESTIONS = ["Where is the lamp?", "Hi.", "How much is the red kettle in the attic?", "Hi.", "Is it red?"]
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def loaded(tiny):
    folder = tiny()
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def likeliest(model, tokenizer, prompt, length: int) -> list[int]:
    """The reply of the most probable tokens, one forward of the whole text for each."""
    ids = prompt_ids(tokenizer, prompt)
    reply: list[int] = []
    while len(reply) < length and tokenizer.eos_token_id not in reply:
        with torch.no_grad():
            logits = model(torch.tensor([ids + reply])).logits
        reply.append(logits[0, -1].argmax().item())
    return reply


def test_greedy_is_the_argmax_token_by_token_for_any_batching_and_order(loaded):
    model, tokenizer = loaded
    by_hand = [likeliest(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    for batch_size in (1, 2, 64):
        replies = generate(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=12, batch_size=batch_size)
        assert [row[0].token_ids for row in replies] == by_hand

    twice = generate(model, tokenizer, PROMPTS[:1], temperature=0, max_new_tokens=12, samples=2)[0]
    assert [reply.token_ids for reply in twice] == [by_hand[0]] * 2


def test_samples_depend_on_the_seed_alone_and_leave_no_trace(loaded):
    model, tokenizer = loaded
    model.train()
    padding_side = tokenizer.padding_side
    random_state = torch.random.get_rng_state()
    counted: list[tuple[int, int]] = []

    def sample(seed: int):
        def count(done: int, total: int) -> None:
            counted.append((done, total))

        return generate(model, tokenizer, PROMPTS, samples=3, max_new_tokens=8, seed=seed, batch_size=4, progress=count)

    first = sample(seed=1)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert model.training and tokenizer.padding_side == padding_side
    assert [done for done, _ in counted] == sorted(done for done, _ in counted)
    assert {(4, 15), (8, 15), (12, 15), (15, 15)} <= set(counted)  # and between them by the tokens
    assert counted[0] == (0.5, 15) and counted[-1] == (15, 15)
    assert [len(row) for row in first] == [3] * 5

    torch.manual_seed(99)
    assert sample(seed=1) == first
    assert sample(seed=2) != first
    assert len({reply.text for row in first for reply in row}) > 5
    model.eval()


def test_the_models_own_sampling_habits_do_not_leak_in(loaded):
    model, tokenizer = loaded
    plain = generate(model, tokenizer, PROMPTS, samples=2, max_new_tokens=8)
    greedy = generate(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=0)
    kept = model.generation_config.to_dict()
    model.generation_config.update(
        do_sample=True,
        temperature=0.1,
        top_k=2,
        top_p=0.3,
        min_p=0.5,
        typical_p=0.4,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        min_new_tokens=3,
        num_beams=2,
        max_length=3,
    )
    try:
        assert generate(model, tokenizer, PROMPTS, samples=2, max_new_tokens=8) == plain
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=0) == greedy
    finally:
        model.generation_config.update(**kept)


@pytest.mark.slow
def test_sampling_follows_the_softmax_at_the_temperature(loaded):
    model, tokenizer = loaded
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids(tokenizer, PROMPTS[1])])).logits[0, -1].double()
    for temperature in (1.0, 0.5):
        replies = generate(
            model, tokenizer, [PROMPTS[1]], samples=4000, max_new_tokens=1, temperature=temperature, batch_size=4000
        )[0]
        drawn = torch.tensor([reply.token_ids[0] for reply in replies])
        counts = torch.bincount(drawn, minlength=len(logits))
        expected = (logits / temperature).softmax(0)
        # Total variation of 4,000 draws over 264 tokens: about sum sqrt(p / 2 pi n) in expectation.
        noise = (expected / (2 * math.pi * 4000)).sqrt().sum().item()
        total_variation = (counts / 4000 - expected).abs().sum().item() / 2
        assert total_variation < 1.3 * noise


def test_every_end_token_ends_a_reply_and_the_cap_does_not(loaded):
    model, tokenizer = loaded
    full = generate(model, tokenizer, PROMPTS[:1], temperature=0, max_new_tokens=6)[0][0]
    assert len(full.token_ids) == 6 and not full.ended
    other = full.token_ids[3]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, other]
    try:
        assert end_tokens(model, tokenizer) == sorted({tokenizer.eos_token_id, other})
        cut = generate(model, tokenizer, PROMPTS[:1], temperature=0, max_new_tokens=6)[0][0]
    finally:
        model.generation_config.eos_token_id = tokenizer.eos_token_id

    stop = full.token_ids.index(other)
    assert cut.ended and cut.token_ids == full.token_ids[: stop + 1]
    assert cut.text == tokenizer.decode(full.token_ids[:stop], skip_special_tokens=True)


def test_a_prompt_is_plain_text_messages_or_tokens(loaded):
    model, tokenizer = loaded
    tokens = tokenizer("Once")["input_ids"]
    assert prompt_ids(tokenizer, "Once") == prompt_ids(tokenizer, tokens) == tokens
    assert tokenizer.decode(prompt_ids(tokenizer, PROMPTS[1])).endswith("Hi.<|im_end|>\n<|im_start|>assistant\n")
    mixed = generate(model, tokenizer, ["Once", PROMPTS[1]], temperature=0, max_new_tokens=4)
    assert mixed[0] == generate(model, tokenizer, ["Once"], temperature=0, max_new_tokens=4)[0]


def test_template_switches_reach_the_template(loaded):
    _, tokenizer = loaded
    plain = tokenizer.chat_template
    tokenizer.chat_template = "{{ 'loud' if loud is defined else 'quiet' }}"
    try:
        assert tokenizer.decode(prompt_ids(tokenizer, PROMPTS[1], {"loud": True})) == "loud"
        assert tokenizer.decode(prompt_ids(tokenizer, PROMPTS[1])) == "quiet"
    finally:
        tokenizer.chat_template = plain


def test_no_prompts_have_no_replies_and_no_samples_are_refused(loaded):
    model, tokenizer = loaded
    assert generate(model, tokenizer, []) == []
    with pytest.raises(RecipeError, match="samples=0"):
        generate(model, tokenizer, PROMPTS, samples=0)
