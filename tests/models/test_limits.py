"""What a configuration allows: options that are about a router, with and without one."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig

from dpo_recipes import RecipeError
from dpo_recipes.models.limits import refuse_absent_router

BEST = {"metric_for_best_model": "aux_loss"}


@pytest.mark.parametrize(
    ("config", "trl", "text"),
    [
        (LlamaConfig(), {"router_aux_loss_coef": 0.01}, "weights the loss of a router, and 'm' is no mixture"),
        (LlamaConfig(), BEST, "have no such number, as it is no mixture of experts"),
        (LlamaConfig(), {"metric_for_best_model": "eval_aux_loss"}, "It can be loss"),
        (Qwen3MoeConfig(router_aux_loss_coef=0.0), BEST, "the loss of its router weighs nothing"),
        (Qwen3MoeConfig(), {**BEST, "router_aux_loss_coef": 0.0}, "the loss of its router weighs nothing"),
    ],
)
def test_what_is_about_a_router_is_refused_where_there_is_none(config, trl, text):
    with pytest.raises(RecipeError) as refused:
        refuse_absent_router(trl, config, "m")
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("config", "trl"),
    [
        (LlamaConfig(), {}),
        (LlamaConfig(), {"router_aux_loss_coef": 0.0, "metric_for_best_model": "loss"}),
        (Qwen3MoeConfig(), {"router_aux_loss_coef": 0.01}),
        (Qwen3MoeConfig(router_aux_loss_coef=0.001), BEST),
        (Qwen3MoeConfig(router_aux_loss_coef=0.0), {**BEST, "router_aux_loss_coef": 0.01}),
    ],
)
def test_a_router_is_taken_as_it_is(config, trl):
    refuse_absent_router(trl, config, "m")
