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
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.dim() > 1 else 1)
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits


def test_sequence_kl_is_the_sum_over_reply_positions_in_float64():
    with torch.random.fork_rng():
        policy, reference = small_model(0), small_model(1)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [3, 3]]
    replies = [[11, 12], [13, 14, 15, 16, 17], [18], []]
    expected = []
    for prompt, reply in zip(prompts, replies, strict=True):
        total = 0.0
        for t in range(len(reply)):
            ids = torch.tensor([prompt + reply[:t]])
            with torch.no_grad():
                p = policy(ids, torch.ones_like(ids))[0, -1].double().softmax(0)
                q = reference(ids, torch.ones_like(ids))[0, -1].double().softmax(0)
            total += sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
        expected.append(total)
    assert expected[0] > 0.01
    for batch_size in (1, 3, 64):
        found = sequence_kl(policy, reference, prompts, replies, batch_size=batch_size)
        assert found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5)
    assert sequence_kl(policy, policy, prompts, replies).tolist() == [0.0] * 4
    with pytest.raises(RecipeError, match="at least one token"):
        sequence_kl(policy, reference, [[]], [[1]])
