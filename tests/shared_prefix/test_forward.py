"""Reading pairs once against bare TRL: the same losses, log-probabilities and gradients, or TRL's own forward."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from making import perturb
from reading_pairs import (
    ALL,
    ARCHITECTURES,
    BATCH,
    FIELDS,
    MIXTURES,
    SMALL_SIZES,
    batch,
    compare,
    draw,
    gradients,
    keep_float64,
    load,
    off,
    two,
)
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer import utils
from trl.trainer.utils import add_fused_lm_head

from dpo_recipes import LoRA, RecipeError
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.shared_prefix import attention, cpu_attention
from dpo_recipes.shared_prefix.cpu_attention import Part, attend
from dpo_recipes.shared_prefix.cpu_head import CPUHead
from dpo_recipes.shared_prefix.forward import share, why_not
from dpo_recipes.shared_prefix.layout import Row

# ------------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", ALL)
def test_outputs_and_gradients_are_trls(tiny, kind, checkpointing):
    bare, mine, said = two(load(tiny(kind, **ALL[kind])), require=True)
    for model in (bare, mine):
        if checkpointing:
            model.gradient_checkpointing_enable()
    for _ in range(2):  # looked at, then trusted
        logps, gradient = compare(bare, mine, BATCH)
        assert logps <= 5e-6 and gradient <= 5e-6
    [line] = said
    assert re.fullmatch(
        r"Each pair is read once: 157 of 264 padded tokens; "
        r"log-probabilities differ by (0|\de-\d) nats per token from TRL's own forward\.",
        line,
    ), line


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", ALL)
def test_filler_up_to_a_round_number_of_tokens_changes_no_output_and_no_gradient(tiny, kind, checkpointing):
    bare, mine, [] = two(load(tiny(kind, **ALL[kind])), require=True, in_round_numbers=True)
    for model in (bare, mine):
        if checkpointing:
            model.gradient_checkpointing_enable()
    tokens_of_layers = []
    for layer in mine.base_model.modules():
        if isinstance(layer, torch.nn.Embedding):
            layer.register_forward_hook(lambda module, args, output: tokens_of_layers.append(output.size(1)))
    for _ in range(2):  # looked at, then trusted
        logps, gradient = compare(bare, mine, BATCH)
        assert logps <= 5e-6 and gradient <= 5e-6
    assert 160 in tokens_of_layers and 157 not in tokens_of_layers


@pytest.mark.filterwarnings("ignore:.*(fan_in_fan_out|did not match any targeted module)")
@pytest.mark.parametrize("kind", ALL)
def test_adapters_have_trls_gradients(tiny, kind):
    from peft import get_peft_model

    models = []
    for model in two(load(tiny(kind, **ALL[kind])), require=True)[:2]:
        model.gradient_checkpointing_enable()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            adapted = get_peft_model(model, peft_config(LoRA(r=4)))
        perturb(adapted, 0.1)  # where B is 0, A has no gradient
        models.append(adapted)
    logps, gradient = compare(*models, BATCH)
    assert logps <= 5e-6 and gradient <= 5e-6


@pytest.mark.parametrize("kind", ALL)
def test_gradients_in_float64_are_equal_to_what_norms_and_head_round(tiny, kind):
    bare, mine, _ = two(load(tiny(kind, **ALL[kind]), torch.float64))
    assert compare(bare, mine, BATCH)[1] <= 1e-7


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "smollm3", "mistral", "gpt2", "gpt_neox", "phi", "phi3"])
def test_gradients_in_true_float64_are_equal_to_14_digits(tiny, kind, monkeypatch):
    model = load(tiny(kind, **ARCHITECTURES[kind]), torch.float64)
    keep_float64(monkeypatch, model)
    bare, mine, _ = two(model, outputs=("log_probs",))
    results = []
    for m in (bare, mine):
        log_probs = m(**BATCH).log_probs
        log_probs.square().sum().backward()
        results.append((log_probs.detach(), gradients(m)))
    assert off(results[1][0], results[0][0]) <= 1e-14 and off(results[1][1], results[0][1]) <= 1e-14


def test_16_bits_add_no_more_noise_than_trl_has(monkeypatch, tiny):
    bare, mine, said = two(load(tiny()))
    truth = bare(**BATCH).log_probs.detach()
    in_our_kernels = []

    def noting(queries, *given):
        in_our_kernels.append(queries)
        return attend(queries, *given)

    monkeypatch.setattr(attention, "attend", noting)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(m(**BATCH).log_probs.detach() - truth).abs().mean().item() for m in (bare, mine)]
    assert "read once" in said[0] and 0 < errors[1] <= 2 * errors[0]
    assert len(in_our_kernels) == mine.config.num_hidden_layers
    bare, mine, said = two(load(tiny(), torch.bfloat16))
    apart = (mine(**BATCH).log_probs - bare(**BATCH).log_probs).detach().abs()
    assert apart.mean() < 0.05 and "read once" in said[0]
    told = re.search(r"differ by (\S+) nats per token on average, (\S+) at most, from TRL's own forward", said[0])
    scored = apart[BATCH["labels"][:, 1:] != -100]
    assert float(told[1]) == pytest.approx(scored.mean().item(), rel=0.5)
    assert float(told[2]) == pytest.approx(scored.max().item(), rel=0.5)


# ---------------------------------------------------------------------------------------------------------- edge cases

P, A, B = draw(20, 9, 6, seed=3)
EDGES = {
    "identical answers": batch((P, A, A), (P, B, A)),
    "all identical": batch((P, A, A)),
    "rejected begins like chosen": batch((P, A, A[:4])),
    "chosen begins like rejected": batch((P, A[:4], A), (P, A, B)),
    "prompt of one token": batch((P[:1], A, B), (P, B, A)),
    "no prompt": batch(([], A, B), ([], [A[0], *B], A)),
    "pad token inside the text": batch((P[:5] + [0] + P[5:], [0, *A], [*B, 0, 0]), (P, A, [0, 0])),
    "cut to an empty answer": batch((P, A, B), (P[:8], A, B), width=20),
    "one side empty": batch((P, [], B), (P, A, [])),
    "one pair": batch((P, A, B)),
    "nothing in common": batch((P, A, B)) | {"input_ids": torch.stack([torch.tensor(P + A), torch.tensor(A + P)])},
    "padded further": batch((P, A, B), (P, B, A), width=64),
}
EDGES["nothing in common"] |= {
    "attention_mask": torch.ones(2, 29, dtype=torch.long),
    "labels": EDGES["nothing in common"]["input_ids"],
}


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_edge_cases(tiny, kind, case):
    bare, mine, said = two(load(tiny(kind, **ARCHITECTURES[kind])), require=True)
    logps, gradient = compare(bare, mine, EDGES[case])
    assert logps <= 5e-6 and gradient <= 5e-6 and "read once" in said[0]


def test_a_batch_without_a_scored_token_is_a_differentiable_zero(tiny):
    bare, mine, _ = two(load(tiny()), require=True)
    given = batch((P, [], []))
    output = mine(**given)
    output.log_probs.sum().backward()
    assert gradients(mine).abs().max() == 0 and output.log_probs.shape == bare(**given).log_probs.shape == (2, 19)


# ------------------------------------------------------------------------------------------------- what stays with TRL


def test_every_call_without_trls_head_is_the_models_own(tiny):
    bare, mine, said = two(load(tiny()).eval(), require=True)
    ids, held, labels = (BATCH[name] for name in ("input_ids", "attention_mask", "labels"))
    with torch.no_grad():
        for given in ({"input_ids": ids, "attention_mask": held}, {"input_ids": ids, "labels": labels}):
            assert torch.equal(bare(**given).logits, mine(**given).logits)
        assert torch.equal(bare(ids).logits, mine(ids).logits)
        written = [m.generate(ids[:, :20], max_new_tokens=8, do_sample=False, eos_token_id=None) for m in (bare, mine)]
    assert torch.equal(*written) and said == []


def without_mask(given):
    return given | {"attention_mask": None}


def padded_on_the_left(given):
    return {name: value.flip(1) if torch.is_tensor(value) else value for name, value in given.items()}


def three_rows(given):
    return {name: value[:3] if torch.is_tensor(value) else value for name, value in given.items()}


def with_positions(given):
    return given | {"position_ids": torch.arange(given["input_ids"].size(1))[None] + 3}


def with_padding_that_is_scored(given):
    return given | {"labels": torch.where(given["attention_mask"] == 0, 7, given["labels"])}


OTHER_BATCHES = [without_mask, padded_on_the_left, three_rows, with_positions, with_padding_that_is_scored]


@pytest.mark.parametrize("changed", OTHER_BATCHES)
def test_other_batches_are_read_as_trl_reads_them_and_that_is_said(tiny, changed):
    bare, mine, said = two(load(tiny()))
    given = changed(BATCH)
    for _ in range(2):
        assert torch.equal(bare(**given).log_probs, mine(**given).log_probs)
    [line] = said
    assert line == (
        "Each pair is read twice and padded, as in TRL: a batch is not made of token ids alone, in pairs that are "
        "padded on the right."
    )
    _, required, _ = two(load(tiny()), require=True)
    with pytest.raises(RecipeError, match="a batch is not made of token ids alone"):
        required(**given)


def test_prompt_tuning_is_read_as_trl_reads_it(tiny, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    bare, mine, said = two(load(tiny()))
    with torch.random.fork_rng():
        models = []
        for model in (bare, mine):
            torch.manual_seed(0)
            models.append(get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)))
    theirs, ours = (m(**BATCH).log_probs for m in models)
    assert torch.equal(theirs, ours) and "read twice" in said[0]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_the_balancing_loss_of_routers_counts_prompts_in_both_rows_as_in_trl(tiny, kind, checkpointing):
    bare, mine, said = two(load(tiny(kind, **MIXTURES[kind], router_aux_loss_coef=0.1)), require=True)
    given = BATCH | {"output_router_logits": True}
    gradients_of_it = []
    for model in (bare, mine):
        if checkpointing:
            model.gradient_checkpointing_enable()
        output = model(**given)
        (output.log_probs.sum() + 100 * output.aux_loss).backward()
        gradients_of_it.append((output.aux_loss.item(), gradients(model)))
    (their_loss, theirs), (our_loss, ours) = gradients_of_it
    assert our_loss == pytest.approx(their_loss, rel=1e-6) and off(ours, theirs) <= 5e-6 and "read once" in said[0]


def test_a_balancing_loss_that_differs_is_trls_from_there_on(tiny, monkeypatch):
    bare, mine, said = two(load(tiny("mixtral", **MIXTURES["mixtral"], output_router_logits=True)))
    init = Row.__init__

    def misplaced(self, *arguments, **named):
        init(self, *arguments, **named)
        self.place = self.place.flip(0)

    monkeypatch.setattr(Row, "__init__", misplaced)
    with torch.no_grad():
        assert torch.equal(mine(**BATCH).aux_loss, bare(**BATCH).aux_loss)
    assert "the routers' balancing loss differs by" in said[0]


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("llama", {"attn_implementation": "flex_attention"}, "'flex_attention' attention cannot be split, 'sdpa' can"),
        ("bloom", {}, "it has attention classes of its own"),
        ("qwen3_next", {"linear_num_value_heads": 4}, "it has recurrent layers"),
        ("minimax", {"head_dim": 8}, "it has layers of type linear_attention"),
        ("doge", {}, "Transformers runs it on padded rows only"),
    ],
)
def test_refused_before_a_batch(kind, changes, reason):
    config = AutoConfig.for_model(kind, **SMALL_SIZES | {k: v for k, v in changes.items() if "attn" not in k})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **{k: v for k, v in changes.items() if "attn" in k})
    assert why_not(model) == reason == share(model, require=False, say=pytest.fail)
    with pytest.raises(RecipeError, match="Pairs cannot be read once: .*pair_sharing='auto' reads them as TRL does"):
        share(model, require=True, say=pytest.fail)


@pytest.mark.parametrize("changes", [{"attention_dropout": 0.1}, {}])
def test_dropout_is_refused(tiny, changes):
    model = AutoModelForCausalLM.from_pretrained(tiny(**changes))
    if not changes:
        model.model.layers[0].mlp.add_module("extra", torch.nn.Dropout(0.1))
    assert "dropout is on" in share(model, require=False, say=pytest.fail)


def unmasked(stretch):
    """A rejected answer that sees itself and its prefix backwards and forwards."""
    prefix = Part(stretch.prefix, stretch.prefix + stretch.shared, causal=False)
    itself = Part(stretch.start, stretch.stop, causal=not stretch.shared)
    return [prefix, itself] if stretch.shared else [itself]


def late(*_):
    raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (unmasked, "log-probabilities differ from TRL's own by up to"),
        (late, "RuntimeError: no kernel."),
    ],
)
def test_what_is_wrong_in_the_first_batch_is_read_by_trl_from_there_on(tiny, monkeypatch, broken, reason):
    monkeypatch.setattr(cpu_attention, "_parts", broken)
    model = load(tiny())
    bare, mine, said = two(model)
    for _ in range(2):
        assert compare(bare, mine, BATCH) == (0, 0)
    assert len(said) == 1 and said[0].startswith(f"Each pair is read twice and padded, as in TRL: {reason}"), said
    required = load(tiny())
    add_fused_lm_head(required, outputs=FIELDS)
    share(required, require=True, say=pytest.fail)
    with pytest.raises(RecipeError, match="Pairs cannot be read once: " + re.escape(reason)):
        required(**BATCH)


def test_what_is_wrong_only_with_gradients_or_only_beside_a_prefix_is_seen_too(tiny, monkeypatch):
    bare, mine, said = two(load(tiny()))
    with torch.no_grad():
        mine(**BATCH)
    monkeypatch.setattr(cpu_attention, "_parts", unmasked)
    assert compare(bare, mine, BATCH) == (0, 0) and len(said) == 2
    bare, mine, said = two(load(tiny()))
    assert compare(bare, mine, EDGES["nothing in common"])[1] <= 5e-6
    assert compare(bare, mine, BATCH) == (0, 0) and len(said) == 2


def test_layers_that_the_row_does_not_reach_are_missed(tiny):
    model = load(tiny())
    model.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    bare, mine, said = two(model)
    bare(**BATCH), mine(**BATCH)
    assert "1 of 2 layers split their attention" in said[0]


def test_a_window_that_layers_do_not_name_is_seen_before_it_matters(tiny):
    """Qwen2-MoE leaves its window to the mask: rows within the window would be right, and longer ones wrong."""
    sizes = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    folder = tiny("qwen2_moe", sliding_window=256, use_sliding_window=True, max_window_layers=2, **sizes)
    bare, mine, said = two(load(folder))
    assert compare(bare, mine, BATCH) == (0, 0) and "0 of 1 layers with a sliding window name it" in said[0]


def test_a_model_is_shared_once_and_its_copies_have_their_own_weights(tiny):
    _, mine, said = two(load(tiny()))
    forward = mine.forward
    assert share(mine, require=True, say=pytest.fail) is None and mine.forward == forward
    other = copy.deepcopy(mine)
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
        assert not torch.equal(other(**BATCH).log_probs, mine(**BATCH).log_probs)


def test_the_head_of_a_row_is_the_lean_one_and_elsewhere_it_is_trls_own(tiny, monkeypatch):
    bare, mine, _ = two(load(tiny()), require=True)
    mine(**BATCH)
    called = []
    for name, function in {"TRL's": utils._ChunkedLogProbFunction, "ours": CPUHead}.items():
        forward = function.forward

        def noting(*given, name=name, forward=forward):
            called.append(name)
            return forward(*given)

        monkeypatch.setattr(function, "forward", staticmethod(noting))
    for model in (bare, mine, bare):
        model(**BATCH)
    assert called == ["TRL's", "ours", "TRL's"]
