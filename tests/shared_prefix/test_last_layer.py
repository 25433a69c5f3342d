"""What nobody reads behind the last layer is not computed, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reading_pairs import ARCHITECTURES, BATCH, compare, gradients, load, off, two
from torch.utils.flop_counter import FlopCounterMode

from dpo_recipes.benchmark.steps import Held
from dpo_recipes.shared_prefix.layout import Row

TOKENS = 157  # of BATCH, each pair once
READ = 80  # of these, from the first predictor of a pair on


def tokens_seen(module) -> list[int]:
    """How many tokens a module is given, call by call."""
    seen: list[int] = []
    # Behind the hook that takes some of them out.
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].size(-2)))
    return seen


def test_the_batch_has_as_many_tokens_as_is_said():
    row = Row.of(**BATCH)
    assert row.tokens.numel() == TOKENS and row.ending.places().numel() == READ


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_the_last_layer_computes_for_what_is_read_alone(tiny, checkpointing):
    bare, mine, _ = two(load(tiny()), require=True)
    first, last = mine.model.layers
    seen = [tokens_seen(module) for module in (first.mlp, last.self_attn.k_proj, last.self_attn.o_proj, last.mlp)]
    if checkpointing:
        mine.gradient_checkpointing_enable()
    compare(bare, mine, BATCH)  # once as TRL does, too, to look at it
    for counts in seen:
        counts.clear()
    assert max(compare(bare, mine, BATCH)) <= 5e-6
    calls = 2 if checkpointing else 1
    assert seen == [[TOKENS] * calls, [TOKENS] * calls, [READ] * calls, [READ] * calls]


def reading_all(row: Row) -> Row:
    """A row that has all of its tokens in the last layer."""
    row.ending = row.whole
    row.ending_places = row.whole.places()
    return row


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "phi3", "olmo2", "gemma3_text", "opt"])
def test_other_layers_have_other_modules_behind_their_attention(tiny, kind, monkeypatch):
    """Some work of every architecture is saved: fewer products, counted, and the same gradients."""
    bare, mine, _ = two(
        load(tiny(kind, **ARCHITECTURES.get(kind, {"attention_dropout": 0.0, "dropout": 0.0}))), require=True
    )
    with torch.no_grad():
        mine(**BATCH)

    def products() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            mine(**BATCH)
        return counter.get_total_flops()

    skipping = products()
    row_of = Row.of
    with monkeypatch.context() as patched:
        patched.setattr(Row, "of", lambda **given: reading_all(row_of(**given)))
        whole = products()
    assert skipping < 0.95 * whole
    assert max(compare(bare, mine, BATCH)) <= 5e-6


def test_an_adapter_is_skipped_with_the_module_that_it_changes(tiny):
    bare, mine, _ = two(load(tiny()), require=True)
    models = []
    for model in (bare, mine):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models.append(get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)))
    # The adapter has come later here than in training: a hook stays with the module that it was given to.
    assert max(compare(*models, BATCH)) <= 5e-6


def test_batches_of_one_length_follow_each_other(tiny):
    """A row that was left standing in a checkpointed layer would be taken for the next one."""
    bare, mine, _ = two(load(tiny()), require=True)
    for model in (bare, mine):
        model.gradient_checkpointing_enable()
    compare(bare, mine, BATCH)
    found = []
    for model in (bare, mine):
        first, second = model(**BATCH).log_probs, model(**BATCH).log_probs
        (first.square().sum() + second.sum()).backward()
        found.append(gradients(model))
    theirs, ours = found
    assert off(ours, theirs) <= 5e-6
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(mine(ids).logits, bare(ids).logits)


def test_less_is_held_for_the_backward(tiny):
    _, mine, _ = two(load(tiny()), require=True)
    mine(**BATCH)
    with Held(mine) as skipping:
        mine(**BATCH)
    for module in mine.model.layers[-1].modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    with Held(mine) as whole:
        mine(**BATCH)
    unread = TOKENS - READ
    [mlp] = {layer.mlp.up_proj.out_features for layer in mine.model.layers}
    assert whole.bytes - skipping.bytes > 4 * unread * 3 * mlp  # the gate, up, and their product
