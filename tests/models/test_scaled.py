"""Models between a reference and a policy: each kind of adapter against the weights that PEFT itself makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from making import load_policy
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights

from dpo_recipes import RecipeError
from dpo_recipes.models.scaled import ScaledAdapter, ScaledModel

KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ranks": {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "head and embedding": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
}


def adapter(folder: Path, base: Path, seed: int, **changes) -> Path:
    """A saved adapter whose every tensor has moved."""
    values = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "down_proj"]}
    model = get_peft_model(load_policy(base), LoraConfig(**values | changes))
    draw = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    return folder


def on(base: Path, folder: Path):
    return PeftModel.from_pretrained(load_policy(base), str(folder)).eval()


def weights(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a base has with this adapter in them."""
    return {name: tensor.double() for name, tensor in on(base, folder).merge_and_unload().state_dict().items()}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dora"])
@pytest.mark.parametrize("factor", [0.25, 1.5])
def test_so_much_of_what_an_adapter_adds_is_added(tiny, tmp_path, kind, factor):
    base = tiny(tie_word_embeddings=False)
    trained = adapter(tmp_path / "trained", base, 0, **KINDS[kind])
    scaled = ScaledAdapter(on(base, trained), trained, factor, start=None)
    (tmp_path / "out").mkdir()
    scaled.write(tmp_path / "out")
    start = {name: tensor.double() for name, tensor in load_policy(base).state_dict().items()}
    end, written = weights(base, trained), weights(base, tmp_path / "out")
    for name in start:
        between = start[name] + factor * (end[name] - start[name])
        torch.testing.assert_close(written[name], between, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["lora", "rslora", "ranks"])
@pytest.mark.parametrize("factor", [0.25, 1.5])
def test_behind_a_start_adapter_it_lies_between_both(tiny, tmp_path, kind, factor):
    started = adapter(tmp_path / "started", tiny(), 1, **KINDS[kind])
    trained = adapter(tmp_path / "trained", tiny(), 2, **KINDS[kind])
    scaled = ScaledAdapter(on(tiny(), trained), trained, factor, start=str(started))
    (tmp_path / "out").mkdir()
    scaled.write(tmp_path / "out")
    start, end = weights(tiny(), started), weights(tiny(), trained)
    for name, tensor in weights(tiny(), tmp_path / "out").items():
        between = start[name] + factor * (end[name] - start[name])
        torch.testing.assert_close(tensor, between, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("continued", [False, True])
def test_dora_ends_at_both_ends_and_turns_in_between(tiny, tmp_path, continued):
    """Its norm is not linear, so that in between the direction and the magnitude are each on their line."""
    trained = adapter(tmp_path / "trained", tiny(), 0, use_dora=True)
    start = {name: tensor.double() for name, tensor in load_policy(tiny()).state_dict().items()}
    started = None
    if continued:
        started = str(adapter(tmp_path / "started", tiny(), 1, use_dora=True))
        start = weights(tiny(), Path(started))
    end = weights(tiny(), trained)

    def at(factor: float) -> dict[str, torch.Tensor]:
        out = tmp_path / f"{factor}"
        out.mkdir()
        ScaledAdapter(on(tiny(), trained), trained, factor, start=started).write(out)
        return weights(tiny(), out)

    none, half, whole = at(1e-12), at(0.5), at(1.0)
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(none[name], start[name], rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[name], end[name], rtol=0, atol=1e-5)
    norms = [tensor[name].norm(dim=1) for tensor in (start, half, end)]
    torch.testing.assert_close(norms[1], (norms[0] + norms[2]) / 2, rtol=0, atol=1e-5)
    assert not torch.allclose(half[name], (start[name] + end[name]) / 2, atol=1e-4)


def test_it_is_lent_beside_the_policy_which_stays_as_it_is(tiny, tmp_path):
    trained = adapter(tmp_path / "trained", tiny(), 0)
    policy = on(tiny(), trained)
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.no_grad():
        before = policy(ids).logits
        scaled = ScaledAdapter(policy, trained, 0.5, start=None)
        with scaled.model() as model:
            lent = model(ids).logits
        assert torch.equal(policy(ids).logits, before) and not torch.allclose(lent, before, atol=1e-3)
        with policy.disable_adapter():
            assert torch.equal(policy(ids).logits, load_policy(tiny()).eval()(ids).logits)


def test_between_models_of_other_shapes_there_is_none(tiny):
    policy, reference = load_policy(tiny()), load_policy(tiny(intermediate_size=40))
    with pytest.raises(RecipeError, match="6 of their weights have other names or shapes, such as model.layers.0.mlp"):
        ScaledModel(policy, reference, 0.5)


@pytest.mark.parametrize(
    ("changes", "start", "message"),
    [
        ({"init_lora_weights": "olora"}, None, "moves part of the base's weights into it"),
        ({"target_parameters": ["mlp.experts"]}, "started", "two of its states cannot stand beside each other"),
    ],
)
def test_what_no_scale_can_show_is_refused(tiny, tmp_path, changes, start, message):
    trained = adapter(tmp_path / "trained", tiny(), 0)
    policy = on(tiny(), trained)
    LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **changes).save_pretrained(tmp_path / "trained")
    with pytest.raises(RecipeError, match=message):
        ScaledAdapter(policy, trained, 0.5, start=start)


def test_a_new_adapter_holds_a_b_of_zeros_and_the_norms_of_its_base_as_peft_has_them(tiny):
    base = load_policy(tiny())
    norms = base.model.layers[0].self_attn.q_proj.weight.norm(dim=1)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], use_dora=True))
    state = get_peft_model_state_dict(model)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    assert names == {".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"}
    assert not state[f"{prefix}.lora_B.weight"].any()
    torch.testing.assert_close(state[f"{prefix}.lora_magnitude_vector"], norms, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_the_names_in_an_adapters_file_are_those_of_its_state(tiny, tmp_path):
    model = get_peft_model(
        load_policy(tiny()), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "embed_tokens"])
    )
    model.save_pretrained(tmp_path)
    names = load_peft_weights(str(tmp_path)).keys()
    assert names == get_peft_model_state_dict(model).keys()
    assert any(name.endswith(".lora_embedding_A") for name in names)
