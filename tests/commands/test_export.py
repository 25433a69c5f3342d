"""`export --dial`: what is written is what was meant to be, and is as near to the exact dial as it says."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from making import load_policy, quiet, short_recipe, train_in
from transformers import AutoTokenizer

from dpo_recipes import RecipeError, Run, evaluate, export
from dpo_recipes.errors import UsageError
from dpo_recipes.evaluation import rehearsal
from dpo_recipes.runs.model_card import nearness_in_words

IDS = torch.tensor([[260, 40, 41, 42, 43, 44, 45, 46, 47, 90, 91, 92, 93]])


def logps(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.double().log_softmax(-1)


def loaded_plainly(folder: Path, base: Path):
    """With PEFT and Transformers alone, as whoever gets the folder would load it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (folder / "adapter_config.json").exists():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights of a base with an adapter in them, which PEFT merges."""
    model = loaded_plainly(adapter, base)
    return {name: tensor.double() for name, tensor in model.merge_and_unload().state_dict().items()}


def plain(base: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in load_policy(base).state_dict().items()}


def config_of(adapter: Path) -> dict:
    config = json.loads((adapter / "adapter_config.json").read_text())
    return config | {"target_modules": sorted(config["target_modules"])}


def with_weights(base: Path, weights: dict[str, torch.Tensor]):
    model = load_policy(base).double()
    model.load_state_dict(weights)
    return model


@contextmanager
def few_short_answers() -> Iterator[None]:
    """What is drawn to measure with is the longest part of an export, and need not be much here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "PROMPTS", 3)
        patch.setattr(rehearsal, "MAX_NEW_TOKENS", 24)
        yield


def exported(run: Run, **values) -> dict:
    """The result of an export; the run itself was measured on all that a run is measured on."""
    with few_short_answers():
        return export(run, **{"console": quiet(), **values})


@pytest.fixture(scope="module")
def run(finished) -> Run:
    return finished().run


@pytest.fixture(scope="module")
def half(run, tmp_path_factory) -> tuple[Path, dict]:
    """(folder, result) of the dial at 0.5."""
    folder = tmp_path_factory.mktemp("exported") / "half"
    return folder, exported(run, dial=0.5, out=folder)


@pytest.mark.slow
def test_a_lora_adapter_adds_so_much_of_what_it_added(run, half, tiny):
    folder, result = half
    start, end = plain(tiny()), merged(tiny(), run.path / "model")
    expected = {name: start[name] + 0.5 * (end[name] - start[name]) for name in start}
    written = loaded_plainly(folder, tiny())
    torch.testing.assert_close(logps(written), logps(with_weights(tiny(), expected)), rtol=0, atol=1e-5)
    moved = logps(with_weights(tiny(), end)) - logps(with_weights(tiny(), start))
    assert moved.abs().max() > 0.01  # or it would be near whatever was written

    assert result["largest_difference"] <= 1e-5 and result["dial"] == 0.5 and result["beta"] == 0.8
    assert result == json.loads((folder / "export.json").read_text())
    left = {path.name for path in (run.path / "model").iterdir()}
    assert {path.name for path in folder.iterdir()} == left | {"export.json"}
    assert config_of(folder) == config_of(run.path / "model")


@pytest.mark.slow
def test_how_near_it_is_is_measured_against_the_exact_dial(run, half, tmp_path):
    _, result = half
    with few_short_answers():
        [row] = evaluate(run, dial=[0.5], to=tmp_path / "evaluated", console=quiet())["dial"]
    for name in ("kl", "reward", "win_rate", "answers/tokens"):
        assert result["exact"][name] == pytest.approx(row[name], rel=1e-5), name
    for tokens in ("along_answers", "along_pairs"):
        distances = result[tokens]
        assert 0 < distances["exported"] < min(distances["policy"], distances["reference"]), tokens
    # what the dial is away from the reference, over all tokens of its answers
    replies = result["prompts"] * 8
    tokens_drawn = result["exact"]["answers/tokens"] * replies
    assert result["along_answers"]["reference"] * tokens_drawn == pytest.approx(row["kl"] * replies, rel=1e-3)
    difference = result["exported"]["reward"] - result["exact"]["reward"]
    assert result["reward_difference"] == pytest.approx(difference, abs=1e-9)


@pytest.mark.slow
def test_at_1_it_is_the_policy_itself_and_nothing_is_apart(run, tiny, tmp_path):
    result = exported(run, dial=1, out=tmp_path / "whole")
    written, policy = loaded_plainly(tmp_path / "whole", tiny()), loaded_plainly(run.path / "model", tiny())
    torch.testing.assert_close(logps(written), logps(policy), rtol=0, atol=1e-6)
    assert result["along_answers"]["exported"] == pytest.approx(0, abs=1e-7)
    assert result["exported"]["kl"] == pytest.approx(result["exact"]["kl"], rel=1e-5)


@pytest.mark.slow
def test_beyond_1_it_warns_and_the_card_says_so(run, tmp_path):
    console = quiet()
    exported(run, dial=1.5, out=tmp_path / "beyond", console=console)
    assert "dial: 1.5 extrapolates." in console.file.getvalue()
    assert "1.5 extrapolates." in (tmp_path / "beyond" / "README.md").read_text()


def test_where_the_policy_itself_is_nearer_that_is_said():
    distances = {"exported": 0.03, "policy": 0.02, "reference": 0.2}
    said = nearness_in_words({"along_answers": distances, "reward_difference": -0.8, "reward_difference_stderr": 0.1})
    assert "differs from that of the dial's by -0.800 +- 0.100, prompt by prompt." in said
    assert said.endswith("That is no approximation: the policy itself is nearer to the dial than this model.")
    assert "no approximation" not in nearness_in_words({"along_pairs": distances | {"exported": 0.001}})


def test_the_card_tells_what_it_is_and_its_code_loads_it(half, tiny):
    folder, result = half
    card = (folder / "README.md").read_text()
    assert "# mine, the dial at 0.5" in card and "with beta 0.8 would have given" in card
    assert f"the exact dial is {result['along_answers']['exported']:.2g} nats per token away from this model" in card
    made: dict = {}
    exec(card.partition("```python\n")[2].partition("```")[0], made)
    written = loaded_plainly(folder, tiny())
    torch.testing.assert_close(logps(made["model"]), logps(written), rtol=0, atol=1e-6)
    assert made["tokenizer"].chat_template == AutoTokenizer.from_pretrained(tiny()).chat_template


@pytest.mark.slow
def test_a_continued_adapter_lies_between_its_start_and_its_end(run, finished, tiny, tmp_path):
    again = finished("continued").run
    result = exported(again, dial=0.5, out=tmp_path / "half")
    written = loaded_plainly(tmp_path / "half", tiny())
    assert written.peft_config["default"].r == 8 and result["largest_difference"] <= 1e-5
    start, end = merged(tiny(), run.path / "model"), merged(tiny(), again.path / "model")
    expected = {name: start[name] + 0.5 * (end[name] - start[name]) for name in start}
    torch.testing.assert_close(logps(written), logps(with_weights(tiny(), expected)), rtol=0, atol=1e-5)
    distances = result["along_pairs"]
    assert 0 < distances["exported"] < min(distances["policy"], distances["reference"])


@pytest.mark.slow
def test_of_a_whole_model_each_weight_lies_between(finished, tiny, tmp_path):
    run = finished("None").run
    result = exported(run, dial=0.5, out=tmp_path / "half")
    start, end = plain(tiny()), plain(run.path / "model")
    written = plain(tmp_path / "half")
    for name in start:
        torch.testing.assert_close(written[name], (start[name] + end[name]) / 2, rtol=0, atol=1e-7)
    assert (tmp_path / "half" / "generation_config.json").exists() and result["largest_difference"] <= 1e-5
    assert result["form"].startswith("a whole model")


@pytest.mark.slow
def test_a_4_bit_run_is_scaled_over_its_4_bit_base(finished, tmp_path):
    run = finished("QLoRA(r=4)").run
    result = exported(run, dial=0.5, out=tmp_path / "half")
    distances = result["along_pairs"]
    assert result["largest_difference"] <= 1e-5
    assert 0 < distances["exported"] < min(distances["policy"], distances["reference"])


def test_what_cannot_be_exported_is_one_message_and_leaves_nothing(run, tmp_path):
    with pytest.raises(UsageError, match="Say what is to be exported: --merged is one plain model"):
        export(run, out=tmp_path / "x")
    for factor in (0, -1, math.inf, math.nan):
        with pytest.raises(UsageError, match="a number above 0"):
            export(run, dial=factor, out=tmp_path / "x")
    with pytest.raises(UsageError, match="is there already"):
        export(run, dial=0.5, out=tmp_path)
    with pytest.raises(RecipeError, match="There is no run folder"):
        export(tmp_path / "none", dial=0.5, out=tmp_path / "x")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="cannot be written: Not a directory. Choose another place: --out FOLDER"):
        export(run, dial=0.5, out=tmp_path / "file" / "x", console=quiet())


@pytest.mark.slow
def test_an_adapter_whose_reference_is_another_model_is_refused(tiny, pairs_file, tmp_path):
    run = train_in(tmp_path, short_recipe(tiny(), pairs_file, reference=str(tiny(seed=1))))
    with pytest.raises(RecipeError, match="no scale of the adapter leads there. .* evaluate .* --dial FACTOR"):
        exported(run, dial=0.5, out=tmp_path / "x")


@pytest.mark.slow
def test_what_loads_as_another_model_is_not_kept(run, tmp_path, monkeypatch):
    from dpo_recipes.models import scaled

    written = scaled.save_file
    monkeypatch.setattr(
        scaled,
        "save_file",
        lambda tensors, *rest, **more: written({n: 1.01 * t for n, t in tensors.items()}, *rest, **more),
    )
    with pytest.raises(RecipeError, match="other log-probabilities than the model in memory"):
        exported(run, dial=0.5, out=tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_took_part_of_its_base_is_refused(run, tmp_path):
    copied = Run(shutil.copytree(run.path, tmp_path / run.path.name))
    file = copied.path / "model" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(RecipeError, match="moves part of the base's weights into it"):
        exported(copied, dial=0.5, out=tmp_path / "x")


def told(rows, run) -> str:
    """A rule of a recipe's own."""
    return "It goes on."


@pytest.mark.slow
def test_the_card_of_the_run_itself_says_what_the_guard_has_seen(tiny, pairs_file, tmp_path):
    run = train_in(tmp_path, short_recipe(tiny(), pairs_file, rules={"told": told}))
    assert "\n* Step 1, warning, `told`: It goes on.\n" in (run.path / "model" / "README.md").read_text()
