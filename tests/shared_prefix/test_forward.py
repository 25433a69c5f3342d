"""Reading pairs once against bare TRL: the same losses, log-probabilities and gradients, or TRL's own forward."""

from __future__ import annotations

import copy
import functools
import os
import re
import socket
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from making import make_pairs
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from dpo_recipes import Data, LoRA, QLoRA, Recipe, RecipeError
from dpo_recipes.losses.trl_losses import TRL_LOSSES
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.resolve import Device, resolve
from dpo_recipes.shared_prefix import attention
from dpo_recipes.shared_prefix.forward import ROUTER, share, why_not
from dpo_recipes.shared_prefix.layout import Row

FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
ARCHITECTURES = {
    "llama": {}, "qwen3": {"head_dim": 8}, "smollm3": {"no_rope_layers": [1, 0]}, "mistral": {"sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOWS}, "gpt2": {}, "gpt_neox": {},
    "phi3": {"sliding_window": 16}, "olmo2": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _attention_as_it_was(monkeypatch):
    """What `share` registers is for the process: undone here, so that no test leans on another."""
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))


def load(folder, dtype=torch.float32, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).train()
    disable_dropout_in_model(model)
    return model


def two(model, outputs=FIELDS, **options):
    """(the model with TRL's fused head alone, a copy that reads pairs once, what that says)."""
    bare, mine, said = model, copy.deepcopy(model), []
    add_fused_lm_head(bare, outputs=outputs)
    add_fused_lm_head(mine, outputs=outputs)
    assert share(mine, require=options.get("require", False), say=said.append) is None
    return bare, mine, said


def batch(*pairs, width=None, pad=0):
    """TRL's call for pairs of (prompt, chosen, rejected), each a list of tokens."""
    rows = [(p, c) for p, c, _ in pairs] + [(p, r) for p, _, r in pairs]
    width = width or max(len(p) + len(a) for p, a in rows)
    ids, held, labels = (torch.full((len(rows), width), fill) for fill in (pad, 0, -100))
    for i, (prompt, answer) in enumerate(rows):
        tokens = torch.tensor([*prompt, *answer])[:width]
        ids[i, : len(tokens)], held[i, : len(tokens)] = tokens, 1
        labels[i, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return {"input_ids": ids, "attention_mask": held, "labels": labels, "fused_lm_head": True, "use_cache": False}


def draw(*lengths, seed=0):
    """One random list of tokens for each length."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(5, 250, (n,), generator=generator).tolist() for n in lengths)


BATCH = batch(draw(30, 12, 7), draw(9, 20, 33, seed=1), draw(41, 3, 2, seed=2))


def gradients(model) -> torch.Tensor:
    """All gradients as one vector, taken away from the model."""
    found = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(found)


def off(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference, relative to TRL's."""
    return ((mine.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-300)).item()


def compare(bare, mine, given) -> tuple[float, float]:
    """Every output in TRL's layout. -> relative differences of log-probabilities and of gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = torch.randn(len(given["input_ids"]), given["input_ids"].size(1) - 1)
    outputs = []
    for model in (bare, mine):
        output = model(**given)
        (output.log_probs * weights).sum().backward()
        outputs.append((output, gradients(model)))
    (theirs, their_gradient), (ours, our_gradient) = outputs
    assert list(ours) == list(theirs)
    assert torch.equal(ours.label_mask, theirs.label_mask) and torch.equal(ours.is_top1, theirs.is_top1)
    for name in theirs:
        assert ours[name].shape == theirs[name].shape and ours[name].dtype == theirs[name].dtype
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-5, atol=2e-5)
    return off(ours.log_probs, theirs.log_probs), off(our_gradient, their_gradient)


# ------------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_outputs_and_gradients_are_trls(tiny, kind, checkpointing):
    bare, mine, said = two(load(tiny(kind, **ARCHITECTURES[kind])), require=True)
    for model in (bare, mine):
        if checkpointing:
            model.gradient_checkpointing_enable()
    for _ in range(2):  # looked at, then trusted
        logps, gradient = compare(bare, mine, BATCH)
        assert logps <= 5e-6 and gradient <= 5e-6
    [line] = said
    assert re.fullmatch(
        r"Each pair is read once: 157 of 264 padded tokens; "
        r"log-probabilities differ by (0|\de-\d) nats per token from TRL's own forward\.", line
    ), line  # fmt: skip


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_gradients_in_float64_are_equal_to_what_norms_and_head_round(tiny, kind):
    bare, mine, _ = two(load(tiny(kind, **ARCHITECTURES[kind]), torch.float64))
    assert compare(bare, mine, BATCH)[1] <= 1e-7


def true_norm(self, x):
    """RMSNorm as Transformers has it, without its rounding to float32."""
    eps = getattr(self, "variance_epsilon", None) or self.eps
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


class TrueHead:
    """TRL's head in the dtype that it is given."""

    @staticmethod
    def apply(hidden, weight, bias, labels, *_):
        logits = F.linear(hidden, weight, bias).log_softmax(-1)
        return logits.gather(1, labels[:, None])[:, 0], *([None] * 4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "smollm3", "mistral", "gpt2", "gpt_neox", "phi3"])
def test_gradients_in_true_float64_are_equal_to_14_digits(tiny, kind, monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", TrueHead)
    model = load(tiny(kind, **ARCHITECTURES[kind]), torch.float64)
    for cls in {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}:
        monkeypatch.setattr(cls, "forward", true_norm)
    bare, mine, _ = two(model, outputs=("log_probs",))
    results = []
    for m in (bare, mine):
        log_probs = m(**BATCH).log_probs
        log_probs.square().sum().backward()
        results.append((log_probs.detach(), gradients(m)))
    assert off(results[1][0], results[0][0]) <= 1e-14 and off(results[1][1], results[0][1]) <= 1e-14


def test_16_bits_add_no_more_noise_than_trl_has(tiny):
    bare, mine, said = two(load(tiny()))
    truth = bare(**BATCH).log_probs.detach()
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(m(**BATCH).log_probs.detach() - truth).abs().mean().item() for m in (bare, mine)]
    assert "read once" in said[0] and 0 < errors[1] <= 2 * errors[0]
    bare, mine, said = two(load(tiny(), torch.bfloat16))
    assert (mine(**BATCH).log_probs - bare(**BATCH).log_probs).abs().mean() < 0.05 and "read once" in said[0]


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
}  # fmt: skip
EDGES["nothing in common"] |= {
    "attention_mask": torch.ones(2, 29, dtype=torch.long), "labels": EDGES["nothing in common"]["input_ids"]
}  # fmt: skip


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


def test_the_row_holds_each_token_once_and_sends_every_target_home():
    row = Row.of(**batch(([1, 2, 3], [4, 5], [4, 6, 7]), ([8], [9], [9, 9])))
    assert row.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 9]]
    assert row.positions.tolist() == [[0, 1, 2, 3, 4, 4, 5, 0, 1, 2]]
    assert [tuple(s) for s in row.stretches] == [(0, 5, 0, 0), (5, 7, 0, 4), (7, 9, 7, 0), (9, 10, 7, 2)]
    assert row.predictors.tolist() == [2, 3, 7, 2, 3, 5, 7, 8]
    assert row.targets.tolist() == [[4, 5, 9, 4, 6, 7, 9, 9]]
    places, queries, keys, *most = row.ragged
    assert places.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 5, 6, 7, 8, 7, 8, 9]
    assert (queries.tolist(), keys.tolist(), most) == ([0, 5, 7, 9, 10], [0, 5, 11, 13, 16], [5, 6])


# ------------------------------------------------------------------------------------------------------------ trainers


class Sharing(DPOTrainer):
    """TRL's trainer on models that read pairs once."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.share()

    def _precompute_ref_logps(self, *arguments):  # in TRL's own __init__
        self.share()
        return super()._precompute_ref_logps(*arguments)

    def share(self):
        self.said = getattr(self, "said", [])
        for model in filter(None, (self.model, self.ref_model)):
            base = model.get_base_model() if hasattr(model, "peft_config") else model
            share(base, require=True, say=self.said.append)


def trainer(cls, folder, tmp_path, model=None, adapter=None, **options):
    """A trainer of 6 + 6 pairs whose policy is some way from its reference."""
    options = {
        "max_length": 96,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 6,
        "bf16": False,
    } | options
    args = DPOConfig(
        output_dir=str(tmp_path / cls.__name__), use_cpu=True, report_to=[], disable_tqdm=True,
        logging_steps=1, per_device_eval_batch_size=3, loss_type=options.pop("loss_type", ["sigmoid"]), **options,
    )  # fmt: skip
    made = cls(
        model=model or AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), args=args,
        train_dataset=Dataset.from_list(make_pairs(6)), eval_dataset=Dataset.from_list(make_pairs(6, seed=9)),
        processing_class=AutoTokenizer.from_pretrained(folder), peft_config=peft_config(adapter),
    )  # fmt: skip
    noise = torch.Generator().manual_seed(4)
    for parameter in made.model.parameters():
        if parameter.requires_grad:
            shift = torch.randn(parameter.shape, generator=noise).to(parameter.dtype)
            parameter.data += 0.02 * shift
    return made


def both(folder, tmp_path, model=lambda: None, **options):
    return [trainer(cls, folder, tmp_path, model(), **options) for cls in (DPOTrainer, Sharing)]


def losses_and_gradients(made) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss and metrics, gradients) of one batch."""
    made.model.train()
    made._metrics["train"].clear()
    inputs = made.data_collator([made.train_dataset[i] for i in range(6)])
    loss = made.compute_loss(made.model, inputs)
    loss.backward()
    numbers = [loss.item(), *(value[-1] for _, value in sorted(made._metrics["train"].items()))]
    return torch.tensor(numbers, dtype=torch.float64), gradients(made.model)


def assert_same(bare, mine):
    (theirs, their_gradient), (ours, our_gradient) = losses_and_gradients(bare), losses_and_gradients(mine)
    assert len(theirs) > 8 and their_gradient.norm() > 0
    torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=2e-6)
    assert off(our_gradient, their_gradient) <= 5e-6


def test_all_of_trls_losses(tiny, tmp_path):
    bare, mine = both(tiny(), tmp_path)
    for loss in TRL_LOSSES:
        for made in (bare, mine):
            made.loss_types, made.loss_weights, made.label_smoothing = [loss], [1.0], 0.1
        assert_same(bare, mine)
    assert len(TRL_LOSSES) == 15


OPTIONS = {
    "ld_alpha": {"ld_alpha": 0.3},
    "use_weighting": {"use_weighting": True},
    "mix": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "f-divergence": {"f_divergence_type": "js_divergence"},
    "cut": {"max_length": 70},
    "cut from the left": {"max_length": 60, "truncation_mode": "keep_end"},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "LoRA": {"adapter": LoRA(r=4)},
    "LoRA, checkpointing": {"adapter": LoRA(r=4), "gradient_checkpointing": True},
    "DoRA": {"adapter": LoRA(r=4, use_dora=True)},
}


@pytest.mark.filterwarnings("ignore:.*keep_end.*deprecated:FutureWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(tiny, tmp_path, options):
    assert_same(*both(tiny(), tmp_path, **options))


def test_qlora(tiny, tmp_path):
    folder = tiny(hidden_size=64, intermediate_size=64)
    recipe = Recipe(model=str(folder), data=Data("unused"), adapter=QLoRA(r=4))
    make = functools.partial(load_weights, recipe, resolve(recipe, Device()), str(folder))
    bare, mine = both(folder, tmp_path, make, adapter=recipe.adapter)
    (theirs, their_gradient), (ours, our_gradient) = losses_and_gradients(bare), losses_and_gradients(mine)
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)  # bf16 is what 4-bit weights compute in
    assert off(our_gradient, their_gradient) < 0.05 and "read once" in mine.said[0]


@pytest.mark.parametrize("adapter", [None, LoRA(r=4)], ids=["full", "LoRA"])
def test_autocast(tiny, tmp_path, adapter):
    """Full: accelerate has wrapped the reference before it is shared, the policy it wraps afterwards."""
    numbers = []
    for made in both(tiny(), tmp_path, adapter=adapter, bf16=True, max_steps=2, gradient_checkpointing=True):
        made.train()
        numbers.append([[log[k] for k in ("loss", "logps/chosen")] for log in made.state.log_history[:2]])
    torch.testing.assert_close(*map(torch.tensor, reversed(numbers)), rtol=2e-3, atol=2e-2)
    assert all("read once" in line for line in made.said) and len(made.said) == 1 + (adapter is None)


@pytest.mark.parametrize("adapter", [None, LoRA(r=4)], ids=["full", "LoRA"])
def test_training_and_evaluation_log_the_same_numbers(tiny, tmp_path, adapter):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 4, "optim": "sgd"}
    bare, mine = both(
        tiny(), tmp_path, adapter=adapter, learning_rate=0.1, gradient_checkpointing=True,
        precompute_ref_log_probs=adapter is None, **options,
    )  # fmt: skip
    if adapter is None:
        columns = [[*m.train_dataset["ref_chosen_logps"], *m.eval_dataset["ref_rejected_logps"]] for m in (bare, mine)]
        assert off(*map(torch.tensor, columns)) <= 5e-6
    for made in (bare, mine):
        made.train()
        made.evaluate()
    skipped = ("runtime", "per_second", "flos")
    logs = [
        [{k: v for k, v in log.items() if not any(s in k for s in skipped)} for log in made.state.log_history]
        for made in (bare, mine)
    ]
    assert [log.keys() for log in logs[0]] == [log.keys() for log in logs[1]] and len(logs[0]) == 6
    for theirs, ours in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert len(mine.said) == 1


def _ddp(rank: int, port: int, folder: str, tmp_path: Path):
    """One of two processes: three steps of bare TRL, then of a policy that reads pairs once."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    warnings.simplefilter("ignore")
    results = []
    for made in both(
        folder, tmp_path / str(rank), per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=2,
        gradient_checkpointing=True, optim="sgd", learning_rate=0.1, ddp_backend="gloo", loss_type=["ipo"],
    ):  # fmt: skip
        start = torch.cat([p.detach().flatten() for p in made.model.parameters()])
        made.train()
        assert made.accelerator.num_processes == 2
        results.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]) - start)
    said = made.said
    assert off(results[1], results[0]) <= 2e-5 and results[0].norm() > 0 and len(said) == 2, (results, said)
    (tmp_path / f"done{rank}").touch()


@pytest.mark.slow
def test_two_processes(tiny, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_ddp, (port, str(tiny()), tmp_path), nprocs=2)
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()


# ------------------------------------------------------------------------------------------------------- other kernels


def bottom_right(query, key, value, borders, window, scaling):
    """What a varlen kernel computes: query, key, value (1, heads, N, size) -> (1, N, heads, size)."""
    out = []
    heads = query.size(1) // key.size(1)
    for (a, b), (c, d) in zip(*(zip(n.tolist(), n.tolist()[1:], strict=False) for n in borders), strict=True):
        ahead = torch.arange(d - c) - torch.arange(d - c - b + a, d - c)[:, None]
        mask = (ahead <= 0) & (ahead > -(window or d - c))
        k, v = (x[:, :, c:d].repeat_interleave(heads, 1) for x in (key, value))
        out.append(F.scaled_dot_product_attention(query[:, :, a:b], k, v, mask, scale=scaling))
    return torch.cat(out, 2).transpose(1, 2)


def flash(module, query, key, value, attention_mask, scaling=None, sliding_window=None, cu_seq_lens_q=None,
          cu_seq_lens_k=None, max_length_q=None, max_length_k=None, **given):  # fmt: skip
    """flash_attention_2 as Transformers calls it: with the borders of a varlen call, or on a padded batch."""
    if cu_seq_lens_q is not None:
        assert max_length_q == cu_seq_lens_q.diff().max() and max_length_k == cu_seq_lens_k.diff().max()
        assert cu_seq_lens_k[-1] == key.size(2) and cu_seq_lens_k.dtype == torch.int32 and attention_mask is None
        flash.calls += 1
        borders = (cu_seq_lens_q, cu_seq_lens_k)
        return bottom_right(query, key, value, borders, sliding_window, scaling), None
    ahead = torch.arange(key.size(2)) - torch.arange(key.size(2))[:, None]
    mask = ((ahead <= 0) & (ahead > -(sliding_window or key.size(2))))[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None] | (ahead == 0)
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_flash_attention_takes_the_row_in_one_call(tiny, kind):
    AttentionInterface.register("flash_attention_2", flash)
    model = load(tiny(kind, **ARCHITECTURES[kind]))
    model.config._attn_implementation = "flash_attention_2"
    flash.calls = 0
    logps, gradient = compare(*two(model, require=True)[:2], BATCH)
    assert logps <= 5e-6 and gradient <= 5e-6 and flash.calls == 2


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_torchs_varlen_kernel_takes_the_row_in_one_call(tiny, kind, monkeypatch):
    def varlen(q, k, v, queries, keys, most_queries, most_keys, *, scale, window_size, enable_gqa):
        assert enable_gqa and window_size[1] == 0 and most_keys == keys.diff().max()
        calls.append(1)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return bottom_right(q, k, v, (queries, keys), window_size[0] + 1, scale)[0]

    calls = []
    monkeypatch.setattr(attention, "_varlen_can", lambda *_: True)
    monkeypatch.setattr(attention, "varlen", varlen)
    logps, gradient = compare(*two(load(tiny(kind, **ARCHITECTURES[kind])), require=True)[:2], BATCH)
    assert logps <= 5e-6 and gradient <= 5e-6 and len(calls) == 2


# ------------------------------------------------------------------------------------------------- what stays with TRL


def test_every_other_call_is_the_models_own(tiny):
    bare, mine, said = two(load(tiny()).eval())
    ids, held, labels = (BATCH[name] for name in ("input_ids", "attention_mask", "labels"))
    left = {"input_ids": ids.flip(1), "attention_mask": held.flip(1), "labels": labels.flip(1), "fused_lm_head": True}
    calls = (
        {"input_ids": ids, "attention_mask": held}, {"input_ids": ids, "labels": labels}, left,
        {name: x[:3] if torch.is_tensor(x) else x for name, x in BATCH.items()},  # three rows are no pairs
        BATCH | {"attention_mask": None}, BATCH | {"position_ids": torch.arange(ids.size(1))[None] + 3},
        BATCH | {"input_ids": None, "inputs_embeds": bare.get_input_embeddings()(ids)},
        BATCH | {"labels": torch.where(held == 0, 7, labels)},  # padding that is scored
    )  # fmt: skip
    with torch.no_grad():
        for given in calls:
            theirs, ours = bare(**given), mine(**given)
            name = "log_probs" if given.get("fused_lm_head") else "logits"
            assert torch.equal(theirs[name], ours[name])
        assert torch.equal(bare(ids).logits, mine(ids).logits)
        written = [m.generate(ids[:, :20], max_new_tokens=8, do_sample=False, eos_token_id=None) for m in (bare, mine)]
    assert torch.equal(*written) and said == []


def test_prompt_tuning_is_read_as_trl_reads_it(tiny, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    bare, mine, said = two(load(tiny()))
    with torch.random.fork_rng():
        models = []
        for model in (bare, mine):
            torch.manual_seed(0)
            models.append(get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)))
    theirs, ours = (m(**BATCH).log_probs for m in models)
    assert torch.equal(theirs, ours) and said == []


def test_a_routers_balancing_loss_keeps_the_padded_rows(tiny):
    model = load(tiny("mixtral", num_local_experts=4, sliding_window=None, router_aux_loss_coef=0.1))
    bare, mine, said = two(model)
    assert compare(bare, mine, BATCH)[1] <= 5e-6
    given = BATCH | {"output_router_logits": True}
    assert torch.equal(bare(**given).aux_loss, mine(**given).aux_loss)
    assert torch.equal(bare(**BATCH).log_probs, mine(**BATCH).log_probs)
    assert len(said) == 2 and "the router's balancing loss counts the prompts of both rows" in said[1]
    model.config.output_router_logits = True
    assert why_not(model) == ROUTER


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("llama", {"attn_implementation": "eager"}, "'eager' attention cannot be split, 'sdpa' can"),
        ("bloom", {}, "it has attention classes of its own"),
        ("qwen3_next", {"linear_num_value_heads": 4}, "it has recurrent layers"),
        ("minimax", {"head_dim": 8}, "it has layers of type linear_attention"),
        ("doge", {}, "Transformers runs it on padded rows only"),
    ],
)
def test_refused_before_a_batch(kind, changes, reason):
    config = AutoConfig.for_model(kind, **CENSUS_SIZES | {k: v for k, v in changes.items() if "attn" not in k})
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


def unmasked(self, stretch, window, device):
    """A rejected answer that sees itself and its prefix backwards and forwards."""
    return None if not stretch.shared else torch.ones(stretch.stop - stretch.start, 1, dtype=torch.bool)


def late(*_):
    raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize(
    ("name", "broken", "reason"),
    [
        ("mask", unmasked, "log-probabilities differ from TRL's own by up to"),
        ("mask", late, "RuntimeError: no kernel."),
    ],
)
def test_what_is_wrong_in_the_first_batch_is_read_by_trl_from_there_on(tiny, monkeypatch, name, broken, reason):
    monkeypatch.setattr(Row, name, broken)
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
    monkeypatch.setattr(Row, "mask", unmasked)
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


# -------------------------------------------------------------------------------------------------------------- census

CENSUS_SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MORE_SIZES = {
    "head_dim": 8, "sliding_window": 8, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8,
    "is_decoder": True, "router_jitter_noise": 0.0, "input_jitter_noise": 0.0, "rotary_dim": 8, "embedding_size": 32,
}  # fmt: skip
MLA_SIZES = {
    "num_key_value_heads": 4, "head_dim": None, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip


def tiny_configs(kind):
    """Configurations of an architecture with every size that it knows made small, the more general ones first."""
    default = AutoConfig.for_model(kind)
    known = default.to_dict().keys() | default.attribute_map.keys()
    types = getattr(default, "layer_types", None)
    mixed = {"layer_types": [types[0], next((t for t in types if t != types[0]), types[0])]} if types else {}
    still = {k: 0.0 for k, v in default.to_dict().items() if "drop" in k and isinstance(v, float)}
    for more in (MORE_SIZES, MORE_SIZES | MLA_SIZES, {}):
        sizes = {k: v for k, v in (CENSUS_SIZES | more).items() if k in known and v is not None}
        for extra in (mixed, {}) if mixed else ({},):
            yield sizes | still | extra


def tiny_model(kind):
    """A random model of an architecture on the meta device with its configuration, and why there is none."""
    why = "no configuration"
    try:
        for changes in tiny_configs(kind):
            try:
                config = AutoConfig.for_model(kind, **changes)
                with torch.device("meta"):
                    model = AutoModelForCausalLM.from_config(config)
                if reason := why_not(model):
                    return None, reason
                size = sum(p.numel() for p in model.parameters())
                assert size < 2e7, f"{size:.0e} parameters"
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(config).train()
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.data.mul_(4)
                disable_dropout_in_model(model)
                add_fused_lm_head(model)
                with torch.no_grad():
                    theirs = model(**CENSUS_BATCH).log_probs
                assert theirs.isfinite().all(), "not finite"
                return model, theirs
            except Exception as error:
                why = f"{type(error).__name__}: {str(error).strip()[:60]}"
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).strip()[:60]}"
    return None, f"unbuilt: {why}"


CENSUS_BATCH = batch(
    *([[t % 91 + 3 for t in x] for x in draw(*n, seed=5)] for n in ((9, 6, 10), (14, 12, 4), (5, 3, 7)))
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_census(caplog):
    """Every causal language model of Transformers: exact, or refused with a reason, or read as TRL reads it."""
    caplog.set_level("CRITICAL", "transformers")  # of the small sizes
    found: dict[str, tuple[str, object]] = {}
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model, theirs = tiny_model(kind)
        if model is None:
            found[kind] = ("unbuilt" if theirs.startswith("unbuilt") else "refused", theirs)
            continue
        said: list[str] = []
        if reason := share(model, require=False, say=said.append):
            found[kind] = ("refused", reason)
            continue
        with torch.no_grad():
            model(**CENSUS_BATCH)
            gap = (model(**CENSUS_BATCH).log_probs - theirs).abs().max().item()
        assert len(said) == 1 and gap <= 1e-3, (kind, gap, said)
        found[kind] = ("exact", gap) if "read once" in said[0] else ("fell back", said[0].partition("TRL: ")[2])
    counts = Counter(outcome for outcome, _ in found.values())
    worst = max((value, kind) for kind, (outcome, value) in found.items() if outcome == "exact")
    print(f"{dict(counts)}; worst {worst[0]:.1e} nats per token ({worst[1]})")
    for outcome in ("refused", "fell back", "unbuilt"):
        print(outcome, {kind: why for kind, (o, why) in found.items() if o == outcome})
    assert counts["exact"] >= 75 and counts["refused"] >= 50 and counts["unbuilt"] <= 40
    assert {kind for kind, (outcome, _) in found.items() if outcome == "exact"} >= {
        "llama", "mistral", "ministral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma3_text", "phi",
        "phi3", "smollm3", "olmo", "olmo2", "olmo3", "olmoe", "granite", "cohere", "cohere2", "starcoder2", "gpt2",
        "gpt_neox", "opt", "glm", "glm4", "exaone4", "ernie4_5", "helium", "seed_oss", "apertus", "nanochat",
    }  # fmt: skip
