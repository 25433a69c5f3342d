"""Batches of pairs, models that read them in both ways, and how far apart these are."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from dpo_recipes.benchmark.steps import Held
from dpo_recipes.shared_prefix.forward import share

FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0]},
    "mistral": {"sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOWS},
    "gpt2": {},
    "gpt_neox": {},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": 16},
    "olmo2": {},
}
# Their attention caps its scores, or has sinks, which SDPA does not know.
WITHOUT_KERNEL = {
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOWS},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **WINDOWS},
}
# Mixtures of experts.
MIXTURES = {
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": WITHOUT_KERNEL["gpt_oss"],
}
ALL = ARCHITECTURES | WITHOUT_KERNEL | MIXTURES
# For a model from its configuration alone.
SMALL_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def load(folder, dtype=torch.float32, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).train()
    disable_dropout_in_model(model)
    if dtype == torch.float64 and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the one that takes float64
    return model


def two(model, outputs=FIELDS, require=False, in_round_numbers=False):
    """(the model with TRL's fused head alone, a copy that reads pairs once, what that says).

    `in_round_numbers`: of tokens in a row, as a run in 16 bits asks for it, whatever the model computes in.
    """
    bare, mine = model, copy.deepcopy(model)
    add_fused_lm_head(bare, outputs=outputs)
    add_fused_lm_head(mine, outputs=outputs)
    said = []
    assert share(mine, require=require, say=said.append, in_round_numbers=in_round_numbers) is None
    return bare, mine, said


def with_lora(folder, checkpointing):
    """A model in 16 bits with LoRA that reads pairs once, and has been compared with TRL's own forward."""
    model = load(folder, torch.bfloat16)
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    model.enable_input_require_grads()
    _, mine, _ = two(model)
    mine(**BATCH)
    if checkpointing:
        mine.gradient_checkpointing_enable()
    return mine


def bytes_held(mine) -> int:
    """What a forward under autocast holds for its backward."""
    with torch.autocast("cpu", torch.bfloat16), Held(mine) as held:
        mine(**BATCH)
    return held.bytes


def leave_as_they_come(mine, kind):
    """Let the modules of a class compute as the library has them."""
    for module in mine.modules():
        if isinstance(module, kind):
            del module.forward


def batch(*pairs, width=None):
    """TRL's call for pairs of (prompt, chosen, rejected), each a list of tokens; the padding token is 0."""
    chosen = [(prompt, answer) for prompt, answer, _ in pairs]
    rejected = [(prompt, answer) for prompt, _, answer in pairs]
    rows = chosen + rejected
    width = width or max(len(prompt) + len(answer) for prompt, answer in rows)

    input_ids = torch.full((len(rows), width), 0)
    attention_mask = torch.full((len(rows), width), 0)
    labels = torch.full((len(rows), width), -100)
    for i, (prompt, answer) in enumerate(rows):
        tokens = torch.tensor([*prompt, *answer])[:width]
        input_ids[i, : len(tokens)] = tokens
        attention_mask[i, : len(tokens)] = 1
        labels[i, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "fused_lm_head": True,
        "use_cache": False,
    }


def draw(*lengths, seed=0, words=range(5, 250)):
    """One random list of tokens for each length."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(words.start, words.stop, (n,), generator=generator).tolist() for n in lengths)


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


def true_norm(self, x):
    """RMSNorm as Transformers has it, without its rounding to float32."""
    eps = getattr(self, "variance_epsilon", None) or self.eps
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


class TrueHead:
    """TRL's head in the dtype that it is given: TRL's own rounds to float32."""

    @staticmethod
    def apply(hidden, weight, bias, labels, *_):
        logits = F.linear(hidden, weight, bias)
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        return (
            log_probs.gather(1, labels[:, None])[:, 0],
            -(probs * log_probs).sum(-1),  # entropy
            probs.square().sum(-1).log(),  # log_sum_sq_probs
            logits.mean(-1),  # mean_logits
            logits.argmax(-1) == labels,  # is_top1
        )


def keep_float64(monkeypatch, model) -> None:
    """Let the norms of the model's architecture, and TRL's head, compute in float64 where the weights have it."""
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", TrueHead)
    for cls in {type(module) for module in model.modules() if type(module).__name__.endswith("RMSNorm")}:
        monkeypatch.setattr(cls, "forward", true_norm)
