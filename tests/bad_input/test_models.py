"""Models, adapters and references that cannot be what the recipe says: one message each, before anything is trained."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import forking
import pytest
import torch
from making import make_model, make_tokenizer, train_in
from rich.console import Console
from safetensors.torch import load_file, save_file

from dpo_recipes import Data, LoRA, QLoRA, Recipe, RecipeError, check
from dpo_recipes.training.session import Session

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4567\n"


# -------------------------------------------------------------------------------------------------------- what is done


def change_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], name="model.safetensors") -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
    save_file(change(tensors), folder / name, metadata={"format": "pt"})


def change_json(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Set fields of a JSON file; None takes one away."""
    values = json.loads((folder / name).read_text()) | changes
    kept = {key: value for key, value in values.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))


def prefix_names(folder: Path) -> None:
    change_weights(folder, lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()})


def without(part: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        change_weights(folder, lambda tensors: {name: t for name, t in tensors.items() if part not in name})

    return drop


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def rename(folder: Path) -> None:
        change_weights(folder, lambda tensors: {name.replace(old, new): t for name, t in tensors.items()})

    return rename


def with_value(name: str, value: float) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        def change(tensors: dict[str, Any]) -> dict[str, Any]:
            tensors[name][0] = value
            return tensors

        change_weights(folder, change)

    return put


def with_int8_weights(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(folder, lambda tensors: tensors | {name: tensors[name].to(torch.int8)})


def configured(**changes: Any) -> Callable[[Path], None]:
    def configure(folder: Path) -> None:
        change_json(folder, **changes)

    return configure


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def removed(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def with_head(change: Callable[[dict[str, Any]], Any], name: str = "model.safetensors") -> Callable[[Path], None]:
    """Another head of a safetensors file before the same numbers."""

    def put(folder: Path) -> None:
        data = (folder / name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + length])
        change(head)
        written_head = json.dumps(head).encode()
        (folder / name).write_bytes(len(written_head).to_bytes(8, "little") + written_head + data[8 + length :])

    return put


def without_a_type(head: dict[str, Any]) -> None:
    head.pop("__metadata__", None)
    del next(iter(head.values()))["dtype"]


def at_other_places(head: dict[str, Any]) -> None:
    head.pop("__metadata__", None)
    next(iter(head.values()))["data_offsets"] = [0, 12]


def longer_than_its_head(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + bytes(100))


def link_that_leads_nowhere(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/no/such/blob")

    return replace


def a_folder(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return replace


def cut_in_half(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def only_gguf(folder: Path) -> None:
    removed("config.json", "model.safetensors")(folder)
    written("model-q4.gguf", "GGUF")(folder)


def shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    written("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))(folder)


def index_missing(folder: Path) -> None:
    shard_missing(folder)
    removed("model.safetensors.index.json")(folder)


def index_of(weight_map: Any) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        shard_missing(folder)
        written("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))(folder)

    return put


def larger_tokenizer(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(10)])
    tokenizer.save_pretrained(folder)


# ----------------------------------------------------------------------------------------------------------- the model


class Broken(NamedTuple):
    """A copy of the tiny model with one thing broken, and what the message says of it."""

    break_it: Callable[[Path], None]
    says: list[str]


BROKEN_MODELS = {
    # Weights that Transformers would make up, leave unread or reshape
    "every name is prefixed": Broken(prefix_names, ["21 weights are missing", "match without 'module.'"]),
    "an MLP is absent": Broken(without("layers.1.mlp"), ["3 weights are missing", "layers.1.mlp.down_proj"]),
    "the config has a layer more": Broken(configured(num_hidden_layers=3), ["num_hidden_layers=3", "hold 2 layers"]),
    "the config has a layer less": Broken(configured(num_hidden_layers=1), ["does not read", "hold 2 layers"]),
    "the untied head is absent": Broken(without("lm_head"), ["lm_head.weight", "tie_word_embeddings"]),
    "one name is misspelt": Broken(renamed("1.mlp.up_proj", "1.mlp.up_porj"), ["1 weight is missing", "up_porj"]),
    "the MLP is wider": Broken(configured(intermediate_size=64), ["6 weights are of another shape", "[32, 48]"]),
    "an adapter was not merged": Broken(renamed("q_proj.", "q_proj.base_layer."), ["merge_and_unload"]),
    "another architecture": Broken(configured(model_type="gpt_neox"), ["weights are missing", "embed_in"]),
    # Numbers
    "NaN": Broken(with_value("model.norm.weight", float("nan")), ["model.norm.weight", "not finite"]),
    "Inf": Broken(with_value("lm_head.weight", float("inf")), ["lm_head.weight", "not finite"]),
    "8-bit weights without scales": Broken(with_int8_weights, ["up_proj.weight", "I8", "quantization_config"]),
    # Files
    "weights cut short": Broken(
        cut_in_half("model.safetensors"), ["model.safetensors is cut short", "Download or copy it again"]
    ),
    "weights empty": Broken(written("model.safetensors", ""), ["model.safetensors is empty"]),
    "weights that are none": Broken(written("model.safetensors", "hello" * 9), ["its head cannot be read"]),
    "a head without a type": Broken(with_head(without_a_type), ["model.safetensors is damaged", "`dtype`", "again"]),
    "a head with other places": Broken(with_head(at_other_places), ["model.safetensors is damaged: invalid shape"]),
    "weights and more": Broken(longer_than_its_head, ["is damaged", "not fully covered", "Download or copy it again"]),
    "weights as a dead link": Broken(
        link_that_leads_nowhere("model.safetensors"), ["model.safetensors is a link to /no/such/blob", "not there"]
    ),
    "weights as a folder": Broken(a_folder("model.safetensors"), ["model.safetensors is a folder"]),
    "weights as an LFS pointer": Broken(written("model.safetensors", LFS_POINTER), ["model.safetensors", "lfs pull"]),
    "tokenizer as an LFS pointer": Broken(written("tokenizer.json", LFS_POINTER), ["tokenizer.json", "lfs pull"]),
    "no weights": Broken(removed("model.safetensors"), ["holds no weights"]),
    "a shard is missing": Broken(shard_missing, ["lacks 1 of the 2 files", "model-00002-of-00002.safetensors"]),
    "the index is missing": Broken(index_missing, ["model.safetensors.index.json is missing", "again"]),
    "the index is empty": Broken(index_of({}), ["model.safetensors.index.json has no weight_map"]),
    "the index holds numbers": Broken(index_of({"a": 5}), ["lacks 1 of the 1 files", "5"]),
    "GGUF only": Broken(only_gguf, ["GGUF", "safetensors"]),
    "no config.json": Broken(removed("config.json"), ["no config.json"]),
    "config.json cut": Broken(
        written("config.json", '{"model_type": '), ["config.json is no valid JSON", "line 1", "again"]
    ),
    "config.json a list": Broken(written("config.json", "[1]"), ["config.json must hold a JSON object"]),
    "no model_type": Broken(configured(model_type=None, architectures=None), ["has no model_type"]),
    "an unknown model_type": Broken(configured(model_type="lama"), ["`lama`", "misspelt"]),
    "an image model": Broken(configured(model_type="vit"), ["ViTConfig", "no causal language model"]),
    "no tokenizer": Broken(removed("tokenizer.json", "tokenizer_config.json"), ["holds no tokenizer"]),
    "a width that is no number": Broken(configured(hidden_size="wide"), ["'hidden_size'", "Take the config.json that"]),
    "generation_config.json cut": Broken(
        written("generation_config.json", "{"), ["generation_config.json is no valid"]
    ),
    "tokenizer.json cut": Broken(cut_in_half("tokenizer.json"), ["tokenizer.json is no valid JSON", "copy it again"]),
    "tokenizer.json absent": Broken(removed("tokenizer.json"), ["It has no tokenizer.json: copy into it"]),
    "tokenizer_config.json a list": Broken(written("tokenizer_config.json", "[]"), ["must hold a JSON object"]),
    "more tokens than embeddings": Broken(larger_tokenizer, ["270 tokens", "264 embeddings", "resize"]),
}


@pytest.fixture
def copied(tiny, tmp_path) -> Path:
    """A copy of the tiny model, to be broken."""
    return Path(shutil.copytree(tiny(), tmp_path / "model"))


@pytest.fixture
def recipe_on(pairs_file):
    """recipe_on(model, adapter=..., ...) -> a recipe that would train a step."""

    def build(model: Path | str, **changes: Any) -> Recipe:
        given = {"adapter": LoRA(r=4), "global_batch_size": 2, "max_length": 96, "trl": {"max_steps": 1}}
        data = Data(str(pairs_file), eval=0.1, allow=["truncated"], max_dropped=1.0)
        return Recipe(model=str(model), data=data, **given | changes)

    return build


@pytest.fixture
def refused(tmp_path):
    """refused(recipe) -> the message with which training refuses it; no run folder is left."""

    def message(recipe: Recipe) -> str:
        with pytest.raises(RecipeError) as error:
            train_in(tmp_path, recipe)
        assert not any((tmp_path / "runs").glob("*"))
        said = str(error.value)
        assert len(said) < 900 and "Traceback" not in said
        return said

    return message


@pytest.mark.parametrize("case", BROKEN_MODELS)
def test_a_broken_model_is_refused(copied, recipe_on, refused, case):
    broken = BROKEN_MODELS[case]
    broken.break_it(copied)
    said = refused(recipe_on(copied))
    for words in broken.says:
        assert words in said


NAMES_AND_SHAPES = [
    "every name is prefixed",
    "an MLP is absent",
    "the MLP is wider",
    "weights cut short",
    "an unknown model_type",
    "more tokens than embeddings",
]


@pytest.mark.parametrize("case", NAMES_AND_SHAPES)
def test_check_knows_it_without_reading_a_weight(copied, recipe_on, case):
    broken = BROKEN_MODELS[case]
    broken.break_it(copied)
    [failed] = [finding for finding in check(recipe_on(copied))["findings"] if finding.level == "fail"]
    assert failed.name == "model"
    for words in broken.says:
        assert words in failed.text


def test_an_encoder_is_no_language_model(tmp_path, recipe_on, refused):
    folder = make_model(tmp_path / "bert", "bert")
    assert "is an encoder (bert)" in refused(recipe_on(folder))


def test_a_model_that_is_a_file(copied, recipe_on, refused):
    said = refused(recipe_on(copied / "model.safetensors"))
    assert "is a file" in said and f"model={copied}" in said


def test_a_model_that_is_an_adapter(tiny, start_adapter, recipe_on, refused):
    said = refused(recipe_on(start_adapter))
    assert f"model={tiny()} adapter.continue_from={start_adapter}" in said


def test_a_model_that_is_a_run_folder(copied, recipe_on, refused):
    run = copied.parent / "run"
    (run / "model").mkdir(parents=True)
    (run / "recipe.json").write_text("{}")
    assert "name the folder model in it" in refused(recipe_on(run))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_model_that_may_not_be_read(copied, recipe_on, refused):
    (copied / "config.json").chmod(0)
    assert "permission denied" in refused(recipe_on(copied))


@pytest.mark.parametrize("adapter", [LoRA(r=4), QLoRA(r=4), None], ids=["lora", "qlora", "full"])
def test_weights_are_compared_in_every_mode(copied, recipe_on, refused, adapter):
    change_json(copied, intermediate_size=64)
    assert "6 weights are of another shape" in refused(recipe_on(copied, adapter=adapter))
    change_json(copied, intermediate_size=48)
    with_value("model.layers.0.mlp.up_proj.weight", float("nan"))(copied)
    assert "up_proj.weight" in refused(recipe_on(copied, adapter=adapter))


# ------------------------------------------------------------------------------------------------------ what it allows

REFUSED_FIELDS = {
    "beyond learned positions": ("gpt2", {"max_length": 4096}, ["2,048 positions", "max_length=2048"]),
    "beyond rotary positions": ("llama", {"max_length": 2049}, ["2,048 positions", "max_length=2048"]),
    "attention misspelt": ("llama", {"attn_implementation": "spda"}, ["'spda'", "Did you mean 'sdpa'"]),
    "attention not installed": ("llama", {"attn_implementation": "flash_attention_2"}, ["flash-attn", "sdpa"]),
    "a target beside a right one": (
        "llama",
        {"adapter": LoRA(r=4, target_modules=["q_proj", "nothere"])},
        ["'nothere'", "no such module", "q_proj, k_proj, v_proj, o_proj"],
    ),
    "a target misspelt": ("llama", {"adapter": LoRA(r=4, target_modules=["v_porj"])}, ["Did you mean 'v_proj'"]),
    "a target of another architecture": (
        "gpt_neox",
        {"adapter": LoRA(r=4, target_modules=["q_proj"])},
        ["'q_proj'", "query_key_value"],
    ),
    "a name as a pattern": (
        "llama",
        {"adapter": LoRA(r=4, target_modules="q_proj")},
        ["regular expression", "adapter.target_modules=['q_proj']"],
    ),
    "a pattern that matches nothing": (
        "llama",
        {"adapter": LoRA(r=4, target_modules=r".*\.attention\..*")},
        ["matches none", "model.layers.0.self_attn.q_proj"],
    ),
    "a pattern that is none": ("llama", {"adapter": LoRA(r=4, target_modules="(q_proj")}, ["no regular expression"]),
    "a pattern with the head": ("llama", {"adapter": LoRA(r=4, target_modules="lm_.*")}, ["the head"]),
    "a norm": ("llama", {"adapter": LoRA(r=4, target_modules=["norm"])}, ["LlamaRMSNorm", "linear layers"]),
    "a rank above every side": ("llama", {"adapter": LoRA(r=33)}, ["adapter.r=33", "At most adapter.r=32"]),
    "a rank above the named ones": (
        "llama",
        {"adapter": LoRA(r=17, target_modules=["k_proj"])},
        ["adapter.r=17", "At most adapter.r=16"],
    ),
}


@pytest.mark.parametrize("case", REFUSED_FIELDS)
def test_what_the_model_does_not_allow_is_refused(tiny, recipe_on, refused, case):
    kind, changes, says = REFUSED_FIELDS[case]
    recipe = recipe_on(tiny(kind), **changes)
    said = refused(recipe)
    failed = [finding.text for finding in check(recipe)["findings"] if finding.level == "fail"]
    assert failed == [said]
    for words in says:
        assert words in said


def test_pairs_that_no_max_length_cuts_must_fit_the_positions(tiny, recipe_on, refused):
    said = refused(recipe_on(tiny("gpt2", max_position_embeddings=64), max_length=None))
    assert "tokens is beyond the 64 positions" in said


def test_experts_are_no_modules(tiny, recipe_on, refused):
    mixture = tiny("mixtral", num_local_experts=2)
    said = refused(recipe_on(mixture, adapter=LoRA(r=4, target_modules=["q_proj", "w1"])))
    assert "'w1'" in said and "experts are in one tensor a layer" in said


# ------------------------------------------------------------------------------------------------------- the reference


def test_a_reference_of_another_vocabulary(tiny, copied, recipe_on, refused):
    file = copied / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    tokens = vocabulary["model"]["vocab"]
    tokens["a"], tokens["b"] = tokens["b"], tokens["a"]
    file.write_text(json.dumps(vocabulary))
    said = refused(recipe_on(tiny(), reference=str(copied)))
    assert "another vocabulary" in said and "2 token ids" in said


def test_a_reference_with_fewer_embeddings(tiny, recipe_on, refused):
    said = refused(recipe_on(tiny(), reference=str(tiny(vocab_size=259))))
    assert "260 tokens, but the reference 259 embeddings" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("an MLP is absent", "3 weights are missing"),
        ("weights empty", "is empty"),
        ("NaN", "not finite"),
    ],
)
def test_a_broken_reference(tiny, copied, recipe_on, refused, case, says):
    BROKEN_MODELS[case].break_it(copied)
    said = refused(recipe_on(tiny(), reference=str(copied)))
    assert says in said and str(copied) in said


def test_a_reference_that_is_an_adapter_of_an_adapter(tiny, start_adapter, recipe_on, refused, tmp_path):
    folder = shutil.copytree(start_adapter, tmp_path / "on_top")
    change_json(folder, "adapter_config.json", base_model_name_or_path=str(start_adapter))
    assert "merge_and_unload" in refused(recipe_on(tiny(), reference=str(folder)))


# ------------------------------------------------------------------------------------------------- a continued adapter


def adapter_weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, change, "adapter_model.safetensors")


def drop_one(tensors: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(tensors.items())[1:])


def add_one(tensors: dict[str, Any]) -> dict[str, Any]:
    first = sorted(tensors)[0]
    return tensors | {first.replace("layers.0", "layers.7"): tensors[first].clone()}


def break_one(tensors: dict[str, Any]) -> dict[str, Any]:
    sorted(tensors.items())[0][1][0] = float("nan")
    return tensors


BROKEN_ADAPTERS = {
    "a tensor is missing": Broken(adapter_weights(drop_one), ["Missing from its file", "lora_"]),
    "a tensor too many": Broken(adapter_weights(add_one), ["not read by this model", "layers.7"]),
    "NaN": Broken(adapter_weights(break_one), ["NaN or Inf", "lora_"]),
    "no weights": Broken(removed("adapter_model.safetensors"), ["has no weights"]),
    "weights empty": Broken(written("adapter_model.safetensors", ""), ["is empty"]),
    "an LFS pointer": Broken(written("adapter_model.safetensors", LFS_POINTER), ["lfs pull"]),
    "weights cut short": Broken(
        cut_in_half("adapter_model.safetensors"), ["is cut short", "Download or copy it again"]
    ),
    "a head without a type": Broken(with_head(without_a_type, "adapter_model.safetensors"), ["is damaged", "`dtype`"]),
    "weights as a dead link": Broken(link_that_leads_nowhere("adapter_model.safetensors"), ["is a link to"]),
    "no configuration": Broken(removed("adapter_config.json"), ["adapter_config.json is missing"]),
    "configuration cut": Broken(written("adapter_config.json", "{"), ["no valid JSON"]),
    "another type": Broken(written("adapter_config.json", '{"peft_type": "IA3"}'), ["IA3 adapter"]),
}


@pytest.mark.parametrize("case", BROKEN_ADAPTERS)
def test_a_broken_adapter_is_refused(tiny, start_adapter, tmp_path, recipe_on, refused, case):
    folder = Path(shutil.copytree(start_adapter, tmp_path / "adapter"))
    broken = BROKEN_ADAPTERS[case]
    broken.break_it(folder)
    said = refused(recipe_on(tiny(), adapter=LoRA(continue_from=str(folder))))
    for words in broken.says:
        assert words in said


def test_an_adapter_of_a_base_of_another_size(tiny, start_adapter, recipe_on, refused):
    said = refused(recipe_on(tiny(hidden_size=64), adapter=LoRA(continue_from=str(start_adapter))))
    assert (
        "Of another shape than the model and its adapter_config.json have it" in said
        and "made on the same model" in said
    )


def test_a_whole_model_is_no_adapter(tiny, recipe_on, refused):
    said = refused(recipe_on(tiny(), adapter=LoRA(continue_from=str(tiny(seed=1)))))
    assert "it is a whole model; set model= to it" in said


def test_a_folder_of_an_adapter_that_is_not_there(tiny, recipe_on, refused):
    said = refused(recipe_on(tiny(), adapter=LoRA(continue_from="./no/such")))
    assert "adapter.continue_from='./no/such'" in said and "no such folder" in said


# -------------------------------------------------------------------------------------------------- the command line


@pytest.mark.slow
def test_the_command_line_says_it_in_one_line(copied, pairs_file, tmp_path):
    prefix_names(copied)
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from dpo_recipes import Data, LoRA, Recipe\n"
        f"recipe = Recipe(model={str(copied)!r}, data=Data({str(pairs_file)!r}), adapter=LoRA(r=4), max_length=96)\n"
    )
    command = ["dpo-recipes", "train", str(recipe), "--runs", str(tmp_path / "runs")]
    done = forking.run(forking.command_line, *command, cwd=tmp_path, environment=dict(os.environ), timeout=1200)
    assert done.returncode == 1
    assert done.stderr.startswith("error: The weights in ") and "LOAD REPORT" not in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "runs").exists()


# -------------------------------------------------------------------------------------------------- what is in order


def accepted(recipe: Recipe) -> None:
    Session(recipe, Console(quiet=True)).check_model()


HEALTHY = {
    "a tied head": ("llama", {"tie_word_embeddings": True}, {}),
    "4-bit weights": ("llama", {}, {"adapter": QLoRA(r=4)}),
    "all weights": ("llama", {}, {"adapter": None}),
    "layers with a bias": ("qwen2", {}, {"adapter": LoRA(r=4, target_modules=["q_proj", "down_proj"])}),
    "Conv1D": ("gpt2", {}, {"adapter": LoRA(r=4, target_modules=["c_attn"])}),
    "a pattern": ("llama", {}, {"adapter": LoRA(r=4, target_modules=r".*\.(q|v)_proj")}),
    "one layer by its whole name": (
        "llama",
        {},
        {"adapter": LoRA(r=4, target_modules=["model.layers.1.self_attn.q_proj"])},
    ),
    "a rank at the limit": ("llama", {}, {"adapter": LoRA(r=32)}),
    "rotary positions scaled": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {"max_length": 8192},
    ),
    "a sliding window": ("mistral", {"sliding_window": 16}, {"max_length": 96}),
    "a mixture of experts": ("mixtral", {"num_local_experts": 2}, {}),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_what_is_in_order_is_not_refused(tiny, recipe_on, case):
    kind, sizes, changes = HEALTHY[case]
    accepted(recipe_on(tiny(kind, **sizes), **changes))


def test_shards_and_what_older_files_carry_are_in_order(tiny, tmp_path, recipe_on):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny("gpt_neox"))
    folder = Path(shutil.copytree(tiny("gpt_neox"), tmp_path / "shards"))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    accepted(recipe_on(folder))

    shard = sorted(folder.glob("*.safetensors"))[0].name
    buffers = {"gpt_neox.layers.0.attention.masked_bias": torch.zeros(1)}
    buffers["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.zeros(4)
    change_weights(folder, lambda tensors: tensors | buffers, shard)
    accepted(recipe_on(folder))


def test_weights_in_the_old_format_are_read(copied, recipe_on, tmp_path):
    tensors = load_file(copied / "model.safetensors")
    torch.save(tensors, copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    accepted(recipe_on(copied))
    session = Session(recipe_on(copied), Console(quiet=True))
    session.read_pairs()
    session.make_trainer(tmp_path / "out", [])


def test_a_copy_whose_other_weights_are_pointers_is_in_order(copied, recipe_on):
    """As of a repository whose safetensors alone were fetched."""
    (copied / "pytorch_model.bin").write_text(LFS_POINTER)
    (copied / "model.onnx").write_text(LFS_POINTER)
    accepted(recipe_on(copied))


def test_an_encoder_made_a_decoder_is_in_order(tmp_path, recipe_on):
    accepted(recipe_on(make_model(tmp_path / "decoder", "bert", is_decoder=True)))


def test_a_reference_with_padded_embeddings_or_without_tokenizer_is_in_order(tiny, tmp_path, recipe_on):
    accepted(recipe_on(tiny(), reference=str(tiny(vocab_size=320))))
    folder = Path(shutil.copytree(tiny(seed=1), tmp_path / "bare"))
    removed("tokenizer.json", "tokenizer_config.json")(folder)
    accepted(recipe_on(tiny(), reference=str(folder)))


# --------------------------------------------------------------------------------------------- where an adapter is used


@pytest.mark.slow
def test_an_adapter_names_its_base_wherever_it_is_used(tiny, recipe_on, tmp_path, monkeypatch):
    """Trained on a relative path, loaded and continued from another folder; a base that has moved is named."""
    home = tmp_path / "home"
    shutil.copytree(tiny(), home / "my_model")
    monkeypatch.chdir(home)
    run = train_in(tmp_path, recipe_on("my_model"))
    adapter = run.path / "model"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        home / "my_model"
    )

    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    run.load_model()
    accepted(recipe_on(home / "my_model", adapter=LoRA(continue_from=str(adapter))))

    (home / "my_model").rename(home / "moved")
    with pytest.raises(RecipeError) as error:
        run.load_model()
    assert str(home / "my_model") in str(error.value) and str(adapter / "adapter_config.json") in str(error.value)
    change_json(adapter, "adapter_config.json", base_model_name_or_path=str(home / "moved"))
    run.load_model()

    adapter_weights(drop_one)(adapter)
    with pytest.raises(RecipeError, match="Missing from its file"):
        run.load_model()
