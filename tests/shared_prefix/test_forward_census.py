"""Every causal language model of Transformers, made small and read in both ways."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from reading_pairs import SMALL_SIZES, batch, draw
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from dpo_recipes.shared_prefix.forward import share, why_not

MORE_SIZES = {
    "head_dim": 8,
    "sliding_window": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "is_decoder": True,
    "router_jitter_noise": 0.0,
    "input_jitter_noise": 0.0,
    "rotary_dim": 8,
    "embedding_size": 32,
}
MLA_SIZES = {
    "num_key_value_heads": 4,
    "head_dim": None,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


def tiny_configs(kind):
    """Configurations of an architecture with every size that it knows made small, the more general ones first."""
    default = AutoConfig.for_model(kind)
    known = default.to_dict().keys() | default.attribute_map.keys()
    types = getattr(default, "layer_types", None)
    mixed = {"layer_types": [types[0], next((t for t in types if t != types[0]), types[0])]} if types else {}
    still = {k: 0.0 for k, v in default.to_dict().items() if "drop" in k and isinstance(v, float)}
    for more in (MORE_SIZES, MORE_SIZES | MLA_SIZES, {}):
        sizes = {k: v for k, v in (SMALL_SIZES | more).items() if k in known and v is not None}
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
        "llama",
        "mistral",
        "ministral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma3_text",
        "phi",
        "phi3",
        "smollm3",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "granite",
        "cohere",
        "cohere2",
        "starcoder2",
        "gpt2",
        "gpt_neox",
        "opt",
        "glm",
        "glm4",
        "exaone4",
        "ernie4_5",
        "helium",
        "seed_oss",
        "apertus",
        "nanochat",
    }
