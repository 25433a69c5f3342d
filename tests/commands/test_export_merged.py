"""`export --merged`: one plain model, which gives what the adapter on its base gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from making import load_policy, make_model, quiet, short_recipe, train_in
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_recipes import LoRA, RecipeError, Run, export
from dpo_recipes.errors import UsageError
from dpo_recipes.exports import merged as exporting
from dpo_recipes.models import merged as merging
from dpo_recipes.models.adapter import put_on
from dpo_recipes.runs.model_card import rounding_in_words

IDS = torch.tensor([[260, *range(64, 84)]])  # letters, of which the pairs are made


def logps(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float().log_softmax(-1)


def apart(one, other) -> float:
    return float((logps(one) - logps(other)).abs().mean())


def merge(run: Run, folder: Path) -> dict:
    return export(run, merged=True, out=folder, console=quiet())


def loaded(folder: Path):
    """With Transformers alone, as whoever gets the folder loads it, in 32 bits."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def in_16_bits(folder: Path, base: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The model of a folder, stored as nearly all published models are."""
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory) -> tuple[Path, dict]:
    """(folder, result) of a LoRA run."""
    folder = tmp_path_factory.mktemp("merged") / "plain"
    return folder, merge(finished().run, folder)


def test_the_merged_model_is_adapter_and_base_in_one(finished, made, tiny):
    folder, result = made
    policy = put_on(load_policy(tiny()), str(finished().run.path / "model"))
    plain = loaded(folder)
    assert apart(plain, policy) < 1e-5 < 0.01 < apart(plain, load_policy(tiny()))
    assert result["difference"]["mean"] < 1e-4 and result["from_base"]["mean"] > 0.01
    assert result["in_32_bits"]["mean"] < 1e-5
    assert result["dtype"] == "float32" and result["merged_into"] == "the original base"
    assert result == json.loads((folder / "export.json").read_text())


def test_it_is_a_plain_folder_with_all_that_belongs_to_it(made, tiny):
    folder, result = made
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert "adapter_config.json" not in names and "quantization_config" not in (folder / "config.json").read_text()
    card = (folder / "README.md").read_text()
    assert "# mine, merged" in card and "It needs no adapter beside it." in card
    code: dict = {}
    exec(card.partition("```python\n")[2].partition("```")[0], code)
    assert apart(code["model"], loaded(folder)) == 0
    assert code["tokenizer"].chat_template == AutoTokenizer.from_pretrained(tiny()).chat_template


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [LoRA(r=4), LoRA(r=4, use_rslora=True, use_dora=True), LoRA(r=4, target_modules=["embed_tokens"])],
    ids=["lora", "rslora and dora", "embedding"],
)
def test_into_a_tied_base_of_16_bits(adapter, tiny, pairs_file, tmp_path):
    base = in_16_bits(tmp_path / "base", tiny(tie_word_embeddings=True))
    run = train_in(tmp_path, short_recipe(base, pairs_file, adapter=adapter, learning_rate=0.01))
    result = merge(run, tmp_path / "plain")
    policy = put_on(loaded(base), str(run.path / "model"))
    plain = loaded(tmp_path / "plain")
    assert apart(plain, policy) < 0.2 * apart(loaded(base), policy)
    assert result["dtype"] == "bfloat16" == json.loads((tmp_path / "plain" / "config.json").read_text())["dtype"]
    with safe_open(tmp_path / "plain" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    is_embedding = adapter.target_modules == ["embed_tokens"]
    assert plain.config.tie_word_embeddings is not is_embedding
    assert ("lm_head.weight" in names) is is_embedding


@pytest.mark.slow
def test_more_bits_take_less_of_what_was_learned(tiny, pairs_file, tmp_path):
    base = in_16_bits(tmp_path / "base", tiny())
    run = train_in(tmp_path, short_recipe(base, pairs_file, learning_rate=0.005))
    lost, differences = {}, {}
    for dtype in ("bfloat16", "float16", "float32"):
        folder = tmp_path / dtype
        result = export(run, merged=True, dtype=dtype, out=folder, console=quiet())
        assert result["dtype"] == dtype == json.loads((folder / "config.json").read_text())["dtype"]
        policy = put_on(loaded(base), str(run.path / "model"))
        assert apart(loaded(folder), policy) == pytest.approx(result["difference"]["mean"], rel=2, abs=1e-5)
        differences[dtype] = result["difference"]["mean"]
        lost[dtype] = differences[dtype] / result["from_base"]["mean"]
    assert lost["float16"] < lost["bfloat16"] / 4 and lost["float32"] < 1e-4
    as_the_base = export(run, merged=True, out=tmp_path / "as the base", console=quiet())
    assert as_the_base["dtype"] == "bfloat16"
    assert as_the_base["difference"]["mean"] == differences["bfloat16"]


def test_how_to_keep_more_of_it_is_said_where_rounding_costs_much():
    result = {"difference": {"mean": 0.02}, "from_base": {"mean": 0.1}, "dtype": "bfloat16"}
    words = rounding_in_words(result)
    assert "costs as much as 20% of what" in words and "--dtype float32" in words and "--dtype float16" in words
    assert "--dtype float16" not in rounding_in_words(result | {"dtype": "float16"})
    assert rounding_in_words(result | {"dtype": "float32"}) is None
    assert rounding_in_words(result | {"difference": {"mean": 0.001}}) is None


def test_a_dtype_of_something_else_or_of_no_kind_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--dtype is that of the weights of --merged, which is not asked for"):
        export(tmp_path, dial=0.5, dtype="float16", out=tmp_path / "out")
    with pytest.raises(
        UsageError, match="--dtype 'flaot16': one of bfloat16, float16, float32. Did you mean 'float16'"
    ):
        export(tmp_path, merged=True, dtype="flaot16", out=tmp_path / "out")


def test_a_whole_module_of_the_adapter_takes_the_place_of_the_base_s(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = tiny(tie_word_embeddings=True)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], init_lora_weights=False)
    model = get_peft_model(load_policy(base), config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.1)
    model.save_pretrained(tmp_path / "adapter")
    plain = merging.merged(merging.load_base(str(base)), tmp_path / "adapter")
    assert not plain.config.tie_word_embeddings
    plain.save_pretrained(tmp_path / "plain")
    assert apart(loaded(tmp_path / "plain"), model) < 1e-5 < apart(loaded(tmp_path / "plain"), load_policy(base))


@pytest.mark.slow
def test_a_continued_adapter_is_one_with_its_start(finished, tiny, tmp_path):
    run = finished("continued").run
    merge(run, tmp_path / "plain")
    policy = put_on(load_policy(tiny()), str(run.path / "model"))
    start = put_on(load_policy(tiny()), str(finished().run.path / "model"))
    plain = loaded(tmp_path / "plain")
    assert apart(plain, policy) < 1e-5 < apart(plain, start)


@pytest.mark.slow
def test_of_4_bits_the_base_that_leads_nearer_is_kept(finished, tmp_path):
    run = finished("QLoRA(r=4)").run
    result = merge(run, tmp_path / "plain")
    means = {each["merged_into"]: each["mean"] for each in result["bases"]}
    assert min(means, key=means.get) == result["merged_into"] == merging.DEQUANTISED
    assert means[merging.DEQUANTISED] < 0.5 * means[merging.ORIGINAL]
    assert "merged into the original base it would be" in (tmp_path / "plain" / "README.md").read_text()
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()
    assert 0 < result["difference"]["mean"] < result["from_base"]["mean"]


@pytest.mark.slow
def test_a_run_of_all_weights_has_nothing_to_merge(finished, tmp_path):
    run = finished("None").run
    with pytest.raises(RecipeError, match=f"no adapter to merge: .* copy it: cp -r {run.path / 'model'} "):
        merge(run, tmp_path / "plain")


def test_it_is_sent_where_that_is_asked_and_its_card_says_so(finished, tmp_path, monkeypatch):
    from dpo_recipes.exports import push

    sent = []
    monkeypatch.setattr(push, "refuse_push", sent.append)
    monkeypatch.setattr(push, "push", lambda folder, name, **_: f"https://hub/{name}")
    result = export(finished().run, merged=True, out=tmp_path / "plain", push="org/mine", console=quiet())
    assert sent == ["org/mine"] and result["pushed"] == "https://hub/org/mine"
    assert 'folder = "org/mine"' in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.slow
def test_what_cannot_be_merged_leaves_nothing(finished, tmp_path, monkeypatch):
    run = finished().run
    with pytest.raises(UsageError, match="--dial and --merged: one of them"):
        export(run, merged=True, dial=0.5, out=tmp_path / "x")
    with pytest.raises(UsageError, match="is there already"):
        merge(run, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "LARGEST_SHARE", 0.0)
        with pytest.raises(RecipeError, match="lost when the weights are rounded to float32"):
            merge(run, tmp_path / "x")
    in_32_bits = merging._merge_in_32_bits

    def doubled(layer, adapter):
        layer.scale_layer(2)
        in_32_bits(layer, adapter)

    monkeypatch.setattr(merging, "_merge_in_32_bits", doubled)
    with pytest.raises(RecipeError, match="Merged in 32 bits, the model is .* above the 0.0001 of rounding"):
        merge(run, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_merge_that_is_not_what_was_trained_is_refused():
    result = {"difference": {"mean": 0.01}, "from_base": {"mean": 0.3}, "tolerance": 0.15, "dtype": "bfloat16"}
    exporting._refuse_another_model(result, changed=True)
    with pytest.raises(RecipeError, match="Rounded to bfloat16, the merged model is its base"):
        exporting._refuse_another_model(result, changed=False)
    with pytest.raises(RecipeError, match="lost when the weights are rounded to bfloat16"):
        exporting._refuse_another_model(result | {"tolerance": 0.005}, changed=True)
    with pytest.raises(RecipeError, match="The adapter changes no log-probability"):
        exporting._refuse_inexact({"from_base": {"mean": 0.0}})


@pytest.mark.slow
def test_a_full_disk_and_ctrl_c_leave_nothing(finished, tmp_path, monkeypatch):
    run = finished().run
    with monkeypatch.context() as patch:
        patch.setattr(exporting.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(RecipeError, match="the merged model takes 0.0 GB, and 0.0 GB are free there"):
            merge(run, tmp_path / "x")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "_read_again", stopped)
    with pytest.raises(KeyboardInterrupt):
        merge(run, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_base_that_is_stored_in_4_bits_is_refused(tiny, tmp_path):
    pytest.importorskip("bitsandbytes")
    from dpo_recipes.models.weights import quantization

    folder = make_model(tmp_path / "model")
    packed = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization(True, torch.bfloat16))
    packed.save_pretrained(tmp_path / "packed")
    with pytest.raises(RecipeError, match="is itself stored quantised"):
        merging.load_base(str(tmp_path / "packed"))
