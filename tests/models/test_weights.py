"""Loading, quantising, adapting, and who the reference is: on tiny models, for real, on the CPU."""

from __future__ import annotations

import json

import pytest
import torch
from making import DATED, make_model, make_tokenizer
from peft import PeftModel, get_peft_model

from dpo_recipes import Data, LoRA, QLoRA, Recipe, RecipeError
from dpo_recipes.models import weights as models
from dpo_recipes.models.weights import peft_config, skeleton
from dpo_recipes.recipe.resolve import Device, resolve

TEXT = "the lamp is in the attic"


def recipe_for(folder, **changes) -> Recipe:
    return Recipe(model=str(folder), **{"data": Data("unused"), **changes})


def weights(folder, **changes):
    recipe = recipe_for(folder, **changes)
    return models.load_weights(recipe, resolve(recipe, Device()), str(folder))


def adapter_gradient(model, ids) -> torch.Tensor:
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat(
        [p.grad.float().flatten() for n, p in model.named_parameters() if "lora_" in n and p.grad is not None]
    )


def test_4bit_gradients_stay_right_after_an_evaluation(tiny):
    """bitsandbytes repacks 4-bit weights at the first eval forward where AVX512-BF16 exists: gradients become noise."""
    folder = tiny(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    config = models.peft_config(LoRA(r=8))
    ids = torch.randint(0, 200, (4, 48), generator=torch.Generator().manual_seed(1))
    pair = []
    for adapter in (LoRA(r=8), QLoRA(r=8, double_quant=False)):
        torch.manual_seed(0)
        model = get_peft_model(weights(folder, adapter=adapter), config)
        draw = torch.Generator().manual_seed(2)
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.data = 0.05 * torch.randn(parameter.shape, generator=draw)
        pair.append(model)
    exact = adapter_gradient(pair[0], ids)
    before = adapter_gradient(pair[1], ids)
    pair[1].eval()
    with torch.no_grad():
        pair[1](input_ids=ids)
    after = adapter_gradient(pair[1], ids)
    cosine = torch.nn.functional.cosine_similarity
    assert type(pair[1].base_model.model.model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    assert cosine(exact, before, dim=0) > 0.9  # what rounding to 4 bit leaves of this model's gradient
    assert cosine(exact, after, dim=0) > 0.9  # 0.33 without the remedy
    torch.testing.assert_close(before, after, rtol=1e-2, atol=1e-5)


def test_4bit_weights_are_nf4_with_bf16_compute_as_the_recipe_says(tiny):
    layer = weights(tiny(), adapter=QLoRA()).model.layers[0].self_attn.q_proj
    assert (layer.weight.quant_type, layer.compute_dtype) == ("nf4", torch.bfloat16)
    assert layer.weight.quant_state.nested
    single = weights(tiny(), adapter=QLoRA(double_quant=False)).model.layers[0].self_attn.q_proj
    assert not single.weight.quant_state.nested


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
    assert models.load_weights(recipe, resolve(recipe, device), str(tiny())).dtype == dtype


def test_the_new_adapter_has_the_recipes_numbers_and_leaves_the_head_alone(tiny):
    for adapter, alpha in ((LoRA(r=4), 8), (LoRA(r=4, alpha=3, use_rslora=True), 3)):
        config = models.peft_config(adapter)
        model = get_peft_model(weights(tiny()), config)
        adapted = {n.split(".")[-4] for n, _ in model.named_parameters() if "lora_A" in n}
        assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert (config.lora_alpha, config.use_rslora, config.task_type) == (alpha, adapter.use_rslora, "CAUSAL_LM")
    only = get_peft_model(weights(tiny()), models.peft_config(LoRA(target_modules=["q_proj"])))
    assert sum("lora_A" in n for n, _ in only.named_parameters()) == 2
    assert models.peft_config(None) is None and models.peft_config(LoRA(continue_from="x")) is None


@pytest.fixture(scope="module")
def start_adapter(tiny, tmp_path_factory):
    """A saved LoRA adapter that is not nothing."""
    model = get_peft_model(weights(tiny()), models.peft_config(LoRA(r=4)))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    folder = tmp_path_factory.mktemp("start")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("adapter", "dtype"), [(LoRA, torch.float32), (QLoRA, torch.bfloat16)])
def test_a_continued_adapter_is_loaded_and_trains(tiny, start_adapter, adapter, dtype):
    model = weights(tiny(), adapter=adapter(continue_from=str(start_adapter)))
    assert isinstance(model, PeftModel)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n and p.dtype == dtype for n, p in trained.items())
    assert all(p.abs().max() > 0.01 for p in trained.values())


def test_what_cannot_be_continued_is_named(tiny, tmp_path):
    with pytest.raises(RecipeError, match="holds no LoRA adapter .* adapter_config.json"):
        weights(tiny(), adapter=LoRA(continue_from=str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}))
    with pytest.raises(RecipeError, match="it is a PROMPT_TUNING adapter"):
        weights(tiny(), adapter=LoRA(continue_from=str(tmp_path)))


def test_a_revision_reaches_model_tokenizer_and_reference(tiny, monkeypatch):
    seen = []
    for cls, name in ((models.AutoModelForCausalLM, "model"), (models.AutoTokenizer, "tokenizer")):
        real = cls.from_pretrained

        def record(path, real=real, name=name, **options):
            seen.append((name, options.get("revision"), options["trust_remote_code"]))
            return real(path)

        monkeypatch.setattr(cls, "from_pretrained", record)
    recipe = recipe_for(tiny(), revision="abc123", trust_remote_code=True)
    settings = resolve(recipe, Device())
    models.load_tokenizer(recipe, str(tiny()))
    models.load_weights(recipe, settings, str(tiny()))
    models.load_weights(recipe, settings, str(tiny()), trainable=False)
    assert seen == [("tokenizer", "abc123", True), ("model", "abc123", True), ("model", "abc123", True)]
    seen.clear()
    other = recipe_for(tiny(), revision="abc123", reference=str(tiny()))
    models.load_weights(other, resolve(other, Device()), str(tiny()), trainable=False)
    assert seen == [("model", None, False)]  # a revision of the policy says nothing about another model


@pytest.mark.parametrize("what", ["tokenizer", "model"])
def test_a_folder_that_holds_no_model_is_named_with_what_it_holds(tmp_path, what):
    (tmp_path / "notes.txt").write_text("hello")
    recipe = recipe_for(tmp_path)
    load = {
        "tokenizer": lambda: models.load_tokenizer(recipe, str(tmp_path)),
        "model": lambda: models.load_weights(recipe, resolve(recipe, Device()), str(tmp_path)),
    }[what]
    with pytest.raises(RecipeError, match=f"No {what} could be loaded from .*notes.txt"):
        load()


# -------------------------------------------------------------------------------------------------------- skeletons


def test_the_skeleton_of_a_gated_or_missing_model_is_refused_like_its_weights(tmp_path):
    recipe = recipe_for(tmp_path)
    with pytest.raises(RecipeError, match="No model could be loaded from"):
        skeleton(recipe, resolve(recipe, Device()), str(tmp_path))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox", "gemma3_text", "phi3", "mistral"])
@pytest.mark.parametrize(
    "adapter",
    [
        None, LoRA(r=4), LoRA(r=4, use_dora=True), LoRA(use_rslora=True, target_modules=["dense", "q_proj", "o_proj"]),
        QLoRA(r=4), QLoRA(r=4, use_dora=True, double_quant=False),
    ],
    ids=["full", "lora", "dora", "rslora on some", "qlora", "qlora dora"],
)  # fmt: skip
def test_a_skeleton_has_every_parameter_of_the_model_in_its_type(tiny, kind, adapter):
    """Names, shapes, dtypes and what trains, and the figures beside 4-bit weights: all equal, nothing allocated."""
    folder = tiny(kind, **({"head_dim": 16} if kind == "gemma3_text" else {}), tie_word_embeddings=kind == "qwen2")
    recipe = recipe_for(folder, adapter=adapter)
    settings = resolve(recipe, Device())
    bare, real = skeleton(recipe, settings, str(folder)), models.load_weights(recipe, settings, str(folder))
    if adapter:
        real = get_peft_model(real, peft_config(adapter))

    def shape(parameter, trains_in):
        state = getattr(parameter, "quant_state", None)
        dtype = trains_in if parameter.requires_grad else parameter.dtype
        return tuple(parameter.shape), dtype, parameter.requires_grad, state and (state.absmax.shape, state.dtype)

    def shapes(model, halved):  # TRL casts the adapter over 4-bit weights, all but DoRA's magnitudes
        half = {n: torch.bfloat16 if halved and "magnitude" not in n else p.dtype for n, p in model.named_parameters()}
        return {n: shape(p, half[n]) for n, p in model.named_parameters()}

    assert all(t.is_meta for t in [*bare.parameters(), *bare.buffers()])
    assert shapes(bare, False) == shapes(real, isinstance(adapter, QLoRA))


def test_a_skeleton_refuses_the_adapter_that_its_model_cannot_have(tiny, tmp_path):
    for adapter, why in (
        (LoRA(continue_from=str(tmp_path)), "holds no LoRA adapter .* adapter_config.json"),
        (LoRA(target_modules=["nothing"]), "This model takes no such adapter: Target modules .* not found"),
    ):
        recipe = recipe_for(tiny(), adapter=adapter)
        with pytest.raises(RecipeError, match=why):
            skeleton(recipe, resolve(recipe, Device()), str(tiny()))


def test_a_skeleton_stands_for_kernels_that_are_not_there(tiny):
    for asked, made in ((None, "sdpa"), ("flash_attention_2", "sdpa"), ("eager", "eager")):
        recipe = recipe_for(tiny(), attn_implementation=asked)
        assert skeleton(recipe, resolve(recipe, Device()), str(tiny())).config._attn_implementation == made


def test_a_skeleton_leaves_4_bit_loading_as_it_was(tiny):
    """bitsandbytes makes its map of 8-bit numbers once for a process: a skeleton that comes first must not be it."""
    recipe = recipe_for(tiny(), adapter=QLoRA(r=4))
    settings = resolve(recipe, Device())
    skeleton(recipe, settings, str(tiny()))
    weight = models.load_weights(recipe, settings, str(tiny())).model.layers[0].mlp.up_proj.weight
    assert weight.quant_state.state2.code.device.type == "cpu" and weight.quant_state.state2.code.max() == 1


# -------------------------------------------------------------------------------------------------------- templates

ASK = [{"role": "user", "content": "where?"}]


def rendered(tokenizer, **kwargs) -> str:
    return tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True, **kwargs)


def test_a_pinned_date_makes_every_day_the_same_and_is_not_saved(tmp_path):
    folder = make_model(tmp_path / "dated", template=DATED)
    loaded = models.load_tokenizer(recipe_for(folder, data=Data("x", template_date="2025-07-08")), str(folder))
    assert "Today Date: 08 July 2025\n" in rendered(loaded.tokenizer)
    loaded.save(tmp_path / "saved")
    again = models.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.chat_template == DATED and "08 July 2025" in rendered(loaded.tokenizer)


def test_what_a_template_does_not_read_is_said(tiny):
    said: list[str] = []
    data = Data("x", template_date="2025-07-08", chat_template_kwargs={"enable_thinking": False})
    models.load_tokenizer(recipe_for(tiny(), data=data), str(tiny()), said.append)
    assert said == [
        "data.template_date=2025-07-08 changes nothing: this chat template prints no date.",
        "data.chat_template_kwargs: this chat template does not read enable_thinking.",
    ]


def test_a_recipe_may_bring_the_template_a_base_model_lacks(tmp_path):
    folder = make_model(tmp_path / "base", template=None)
    bare = models.load_tokenizer(recipe_for(folder), str(folder))
    assert bare.template is None
    template = "{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    given = models.load_tokenizer(recipe_for(folder, data=Data("x", chat_template=template)), str(folder))
    assert rendered(given.tokenizer) == "where?!"
    given.save(tmp_path / "saved")
    assert models.AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == template
    with pytest.raises(RecipeError, match="data.template_date is for a chat template, and the tokenizer .* has none"):
        models.load_tokenizer(recipe_for(folder, data=Data("x", template_date="2025-07-08")), str(folder))


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="has no end token"):
        models.load_tokenizer(recipe_for(tmp_path), str(tmp_path))


def test_device_is_the_cpu_here_and_says_nothing():
    said: list[str] = []
    assert models.device(said.append) == Device() and said == []


def test_cudnn_attention_is_switched_off_on_cuda_where_its_gradients_can_be_nan(monkeypatch):
    said: list[str] = []
    switched: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    for version in ("2.13.0+cu130", "2.11.0", "2.10.1", "2.9.0"):
        monkeypatch.setattr(torch, "__version__", version)
        assert models.device(said.append).kind == "cuda"
    assert switched == [False, False] and "cuDNN attention is off" in said[0]


def test_several_gpus_or_processes_are_refused_with_what_to_set(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(RecipeError, match="4 GPUs are visible, and one process uses one. Set CUDA_VISIBLE_DEVICES=0"):
        models.device()
    monkeypatch.setattr(models, "Device", lambda: Device(processes=2))
    with pytest.raises(RecipeError, match="one process; a launcher started 2"):
        models.device()


def test_an_adapter_given_as_the_model_is_refused_with_what_to_write(tiny, start_adapter):
    for adapter in (LoRA(), None):
        with pytest.raises(RecipeError, match=f"is an adapter.* adapter.continue_from={start_adapter}"):
            weights(start_adapter, adapter=adapter)


def test_an_adapter_of_another_base_is_said(tiny, start_adapter):
    said: list[str] = []
    for folder, lines in ((tiny(), 0), (tiny(seed=3), 1)):
        recipe = recipe_for(folder, adapter=LoRA(continue_from=str(start_adapter)))
        models.load_weights(recipe, resolve(recipe, Device()), str(folder), say=said.append)
        assert len(said) == lines
    assert str(tiny()) in said[0] and str(tiny(seed=3)) in said[0]


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny):
    small = tiny(vocab_size=259)
    recipe = recipe_for(small)
    with pytest.raises(RecipeError, match="The tokenizer has 260 tokens, but the model 259 embeddings"):
        models.need_embeddings(weights(small), models.load_tokenizer(recipe, str(small)).tokenizer)
