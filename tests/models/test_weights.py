"""Loading and quantising: on tiny models, for real, on the CPU."""

from __future__ import annotations

import pytest
import torch
from making import load_policy, recipe_for
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_recipes import LoRA, QLoRA, RecipeError
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.models.tokenizer import load_tokenizer
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.resolve import Device, resolve


def with_seeded_adapter(model):
    """The model with an adapter of rank 8 whose numbers are the same for every model."""
    torch.manual_seed(0)
    model = get_peft_model(model, peft_config(LoRA(r=8)))
    draw = torch.Generator().manual_seed(2)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=draw)
    return model


def adapter_gradient(model, ids) -> torch.Tensor:
    """The gradient of all adapter weights in one row."""
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = []
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.grad is not None:
            gradients.append(parameter.grad.float().flatten())
    return torch.cat(gradients)


def test_4bit_gradients_stay_right_after_an_evaluation(tiny):
    """bitsandbytes repacks 4-bit weights at the first eval forward where AVX512-BF16 exists: gradients become noise."""
    folder = tiny(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    full = with_seeded_adapter(load_policy(folder, adapter=LoRA(r=8)))
    four_bit = with_seeded_adapter(load_policy(folder, adapter=QLoRA(r=8, double_quant=False)))
    assert type(four_bit.base_model.model.model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"

    ids = torch.randint(0, 200, (4, 48), generator=torch.Generator().manual_seed(1))
    exact = adapter_gradient(full, ids)
    before = adapter_gradient(four_bit, ids)
    four_bit.eval()
    with torch.no_grad():
        four_bit(input_ids=ids)
    after = adapter_gradient(four_bit, ids)

    cosine = torch.nn.functional.cosine_similarity
    assert cosine(exact, before, dim=0) > 0.9  # what rounding to 4 bit leaves of this model's gradient
    assert cosine(exact, after, dim=0) > 0.9  # 0.33 without the remedy
    torch.testing.assert_close(before, after, rtol=1e-2, atol=1e-5)


def test_4bit_weights_are_nf4_with_bf16_compute_as_the_recipe_says(tiny):
    layer = load_policy(tiny(), adapter=QLoRA()).model.layers[0].self_attn.q_proj
    assert (layer.weight.quant_type, layer.compute_dtype) == ("nf4", torch.bfloat16)
    assert layer.weight.quant_state.nested
    single = load_policy(tiny(), adapter=QLoRA(double_quant=False)).model.layers[0].self_attn.q_proj
    assert not single.weight.quant_state.nested


@pytest.mark.parametrize(
    ("gpu", "use_cpu", "placed"),
    [
        (False, False, None),
        (False, True, {"": "cpu"}),
        (True, False, {"": 0}),
        (True, True, {"": "cpu"}),  # Transformers would take the GPU, and the inputs would be elsewhere
    ],
)
def test_4bit_weights_are_loaded_to_where_they_train(tiny, monkeypatch, gpu, use_cpu, placed):
    options: list[dict] = []

    class Loaded(Exception):
        """What is loaded is not wanted."""

    def record(path, **given):
        options.append(given)
        raise Loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", record)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for adapter in (QLoRA(), LoRA()):
        with pytest.raises(RecipeError):
            load_policy(tiny(), adapter=adapter, trl={"use_cpu": use_cpu})
    assert [given.get("device_map") for given in options] == [placed, None]


@pytest.mark.parametrize(
    ("changes", "device", "dtype"),
    [
        ({}, Device(), torch.float32),
        ({"adapter": LoRA()}, Device(), torch.float32),
        ({"adapter": LoRA()}, Device("cuda", bf16=True), torch.bfloat16),
        ({}, Device("cuda", bf16=True), torch.float32),
        ({"adapter": LoRA(), "dtype": "bfloat16"}, Device(), torch.bfloat16),
    ],
)
def test_base_weights_have_the_dtype_of_the_mode(tiny, changes, device, dtype):
    recipe = recipe_for(tiny(), **changes)
    assert load_weights(recipe, resolve(recipe, device), str(tiny())).dtype == dtype


def test_a_revision_reaches_model_tokenizer_and_reference(tiny, monkeypatch):
    """(what was loaded, its revision, whether its own code may run), in order."""
    seen: list[tuple] = []

    def record(loader, name):
        real = loader.from_pretrained

        def from_pretrained(path, **options):
            seen.append((name, options.get("revision"), options["trust_remote_code"]))
            return (
                real(path, output_loading_info=options.get("output_loading_info", False))
                if name == "model"
                else real(path)
            )

        monkeypatch.setattr(loader, "from_pretrained", from_pretrained)

    record(AutoModelForCausalLM, "model")
    record(AutoTokenizer, "tokenizer")
    recipe = recipe_for(tiny(), revision="abc123", trust_remote_code=True)
    settings = resolve(recipe, Device())
    load_tokenizer(recipe, str(tiny()))
    load_weights(recipe, settings, str(tiny()))
    load_weights(recipe, settings, str(tiny()), trainable=False)
    assert seen == [("tokenizer", "abc123", True), ("model", "abc123", True), ("model", "abc123", True)]

    seen.clear()
    other = recipe_for(tiny(), revision="abc123", reference=str(tiny()))
    load_weights(other, resolve(other, Device()), str(tiny()), trainable=False)
    assert seen == [("model", None, False)]  # a revision of the policy says nothing about another model


def test_an_adapter_given_as_the_model_is_refused_with_what_to_write(tiny, start_adapter):
    for adapter in (LoRA(), None):
        with pytest.raises(RecipeError, match=f"is an adapter.* adapter.continue_from={start_adapter}"):
            load_policy(start_adapter, adapter=adapter)
