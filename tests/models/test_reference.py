"""The reference is what the policy started from, whatever has been trained since; to lend it out changes nothing."""

from __future__ import annotations

import pytest
import torch
from making import REFERENCES, model_state, perturb

IDS = torch.randint(0, 250, (2, 17), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", REFERENCES)
def test_each_kind_of_reference_gives_the_numbers_of_freshly_loaded_weights(trainer_with_reference, kind):
    trainer, reference, fresh = trainer_with_reference(kind)
    policy = trainer.model.eval()
    if kind != "other model":
        torch.testing.assert_close(logits(policy), logits(fresh), rtol=0, atol=1e-5)
    else:
        assert (logits(policy) - logits(fresh)).abs().max() > 0.1

    perturb(policy)
    moved = logits(policy)
    before = model_state(policy)
    with reference.model() as model:
        torch.testing.assert_close(logits(model), logits(fresh), rtol=0, atol=1e-5)
        assert not model.training
    assert (moved - logits(fresh)).abs().max() > 0.1
    assert torch.equal(logits(policy), moved) and model_state(policy) == before

    with pytest.raises(ZeroDivisionError), reference.model():
        raise ZeroDivisionError
    assert torch.equal(logits(policy), moved) and model_state(policy) == before

    with reference.model() as again:
        assert again is model  # weights that are loaded once more are loaded once
