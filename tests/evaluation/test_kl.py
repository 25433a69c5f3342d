"""The KL along replies against sums done by hand in float64."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dpo_recipes.errors import RecipeError
from dpo_recipes.evaluation.kl import sequence_kl


def small_model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # sharper than an initialised model, so that differences show
            parameter.data.mul_(5)

    def logits(ids, mask):
        return model(input_ids=ids, attention_mask=mask).logits

    return logits


@torch.no_grad()
def kl_by_hand(policy, reference, prompt, reply, temperature) -> float:
    """One forward a position, and the sum over the vocabulary in Python's own float64."""
    total = 0.0
    for position in range(len(reply)):
        ids = torch.tensor([prompt + reply[:position]])
        p = (policy(ids, torch.ones_like(ids))[0, -1].double() / temperature).softmax(0)
        q = (reference(ids, torch.ones_like(ids))[0, -1].double() / temperature).softmax(0)
        total += sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sequence_kl_is_the_sum_over_reply_positions_in_float64(temperature):
    with torch.random.fork_rng():
        policy = small_model(0)
        reference = small_model(1)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [3, 3]]
    replies = [[11, 12], [13, 14, 15, 16, 17], [18], []]
    by_hand = []
    for prompt, reply in zip(prompts, replies, strict=True):
        by_hand.append(kl_by_hand(policy, reference, prompt, reply, temperature))
    assert by_hand[0] > 0.01
    expected = torch.tensor(by_hand, dtype=torch.float64)
    for batch_size in (1, 3, 64):
        kl = sequence_kl(policy, reference, prompts, replies, temperature=temperature, batch_size=batch_size)
        assert kl.dtype == torch.float32 and not kl.requires_grad
        torch.testing.assert_close(kl.double(), expected, rtol=1e-4, atol=1e-5)
    assert sequence_kl(policy, policy, prompts, replies).tolist() == [0.0] * 4
    with pytest.raises(RecipeError, match="at least one token"):
        sequence_kl(policy, reference, [[]], [[1]])
