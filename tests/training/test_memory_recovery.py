"""Where memory does not suffice a run goes on in parts: the same losses, the same weights, and it says so."""

from __future__ import annotations

import io

import pytest
import torch
from making import make_pairs, write_jsonl
from rich.console import Console
from safetensors.torch import load_file

from dpo_recipes import Data, LoRA, Recipe, RecipeError, train
from dpo_recipes.training import memory_recovery
from dpo_recipes.training.memory_recovery import data_loaders_kept, of_pairs, with_fewer_at_once
from dpo_recipes.training.trainer import RecipeTrainer

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def recipe_of(tiny, pairs_file, **changes) -> Recipe:
    trl = {"max_steps": 3, "gradient_checkpointing": False, **changes.pop("trl", {})}
    given = {"adapter": LoRA(r=4), "learning_rate": 1e-3, "global_batch_size": 6, "micro_batch_size": 3}
    data = Data(str(pairs_file), eval=0.25)
    return Recipe(model=str(tiny()), data=data, max_length=112, trl=trl, **given | changes)


def run_it(recipe, runs):
    console = Console(file=io.StringIO(), width=400)
    run = train(recipe, runs=runs, console=console)
    weights = load_file(next((run.path / "model").glob("*.safetensors")))
    return run, weights, console.file.getvalue()


def full_behind_backward(monkeypatch, most, from_step=0):
    """Let memory not suffice for more pairs than `most`, behind the backward, whose part of a gradient is there."""
    from trl import DPOTrainer

    method, failed_at = DPOTrainer.training_step, []

    def limited(self, model, inputs, *arguments, **options):
        loss = method(self, model, inputs, *arguments, **options)
        if len(inputs["input_ids"]) // 2 > most and self.state.global_step >= from_step:
            failed_at.append(self.state.global_step)
            raise FULL
        return loss

    monkeypatch.setattr(DPOTrainer, "training_step", limited)
    return failed_at


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "from_step", "changes"),
    [
        (1, 0, {}),
        (2, 1, {"loss": {"sigmoid": 1.0, "ipo": 0.5}, "trl": {"ld_alpha": 0.5}}),
        (1, 2, {"adapter": None, "learning_rate": 1e-5, "pair_sharing": "off"}),
    ],
)
def test_what_is_read_in_parts_has_the_losses_and_weights_of_the_whole(
    tiny, pairs_file, tmp_path, monkeypatch, most, from_step, changes
):
    recipe = recipe_of(tiny, pairs_file, **changes)
    whole, weights, _ = run_it(recipe, tmp_path / "whole")
    failed_at = full_behind_backward(monkeypatch, most, from_step)
    run, found, said = run_it(recipe, tmp_path / "parts")

    assert set(failed_at) == {from_step}  # once it has read fewer it stays at that
    assert f"Memory does not suffice for step {from_step + 1} with 3 pairs at once." in said
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, atol=5e-6, rtol=1e-4, msg=name)
    for row, expected in zip(run.metrics, whole.metrics, strict=True):
        assert row.keys() == expected.keys()
        for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "num_tokens", "grad_norm"):
            if name in expected:
                assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_a_single_pair_that_is_too_large_gets_checkpointing_and_then_the_error_its_ways_out(
    tiny, pairs_file, tmp_path, monkeypatch
):
    recipe = recipe_of(tiny, pairs_file, micro_batch_size=1)
    _, weights, _ = run_it(recipe, tmp_path / "whole")
    method = RecipeTrainer._compute_loss

    def full_without_checkpointing(self, model, inputs, return_outputs):
        if self.model.training and not self.model.is_gradient_checkpointing:
            raise FULL
        return method(self, model, inputs, return_outputs)

    monkeypatch.setattr(RecipeTrainer, "_compute_loss", full_without_checkpointing)
    _, found, said = run_it(recipe, tmp_path / "checkpointing")
    assert "with 1 pair at once. It is taken again, and the run goes on, with gradient checkpointing" in said
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5, msg=name)

    def always_full(self, model, inputs, return_outputs):
        if self.model.training:
            raise FULL
        return method(self, model, inputs, return_outputs)

    monkeypatch.setattr(RecipeTrainer, "_compute_loss", always_full)
    with pytest.raises(RecipeError, match=r"There is not enough memory: CUDA out of memory\. `dpo-recipes check"):
        run_it(recipe, tmp_path / "never")


@pytest.mark.slow
def test_a_loss_that_couples_pairs_is_not_read_in_parts(tiny, pairs_file, tmp_path, monkeypatch):
    recipe = recipe_of(tiny, pairs_file, loss="aot")
    full_behind_backward(monkeypatch, 1)
    with pytest.raises(RecipeError, match="loss='aot' is of all of them together: with fewer it would be another"):
        run_it(recipe, tmp_path)


@pytest.mark.slow
def test_reference_and_held_out_pairs_are_read_with_fewer_at_once(tiny, tmp_path, monkeypatch):
    pairs_file = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(24, seed=5))  # whose reference is not known
    recipe = recipe_of(tiny, pairs_file)
    method, most = RecipeTrainer.compute_ref_log_probs, 1
    prediction_step = RecipeTrainer.prediction_step

    def limited_reference(self, model, inputs):
        if len(inputs["input_ids"]) // 2 > most:
            raise FULL
        return method(self, model, inputs)

    def limited_prediction(self, model, inputs, *arguments, **options):
        if len(inputs["input_ids"]) // 2 > most:
            raise FULL
        return prediction_step(self, model, inputs, *arguments, **options)

    with monkeypatch.context() as limited:
        limited.setattr(RecipeTrainer, "compute_ref_log_probs", limited_reference)
        limited.setattr(RecipeTrainer, "prediction_step", limited_prediction)
        limited.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        run, weights, said = run_it(recipe, tmp_path / "parts")
    assert "Memory does not suffice for 3 pairs at once: the reference reads the train pairs again, 1 pair" in said
    assert "Memory does not suffice for 3 pairs at once: the held-out pairs are read again, 1 pair at once." in said

    whole, expected, _ = run_it(recipe, tmp_path / "whole")
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    for when in ("before", "after"):
        for name in ("loss", "rewards/accuracies", "rewards/margins", "pairs"):
            found, value = run.evaluation[when][name], whole.evaluation[when][name]
            assert found == pytest.approx(value, rel=1e-5, abs=1e-6), (when, name)


@pytest.mark.slow
def test_accelerate_keeps_no_loader_of_a_pass_that_failed():
    class State:
        dataloader_references = ["training"]

    class Accelerator:
        gradient_state = State()
        num_processes = 1

    def work(batch_size):
        Accelerator.gradient_state.dataloader_references.append("left over")
        if batch_size > 2:
            raise FULL
        return batch_size, list(Accelerator.gradient_state.dataloader_references)

    said: list[str] = []
    assert with_fewer_at_once(8, work, Accelerator, said.append, "again") == (2, ["training", "left over"])
    assert said == [
        "Memory does not suffice for 8 pairs at once: again, 4 pairs at once.",
        "Memory does not suffice for 4 pairs at once: again, 2 pairs at once.",
    ]
    with pytest.raises(ZeroDivisionError), data_loaders_kept(Accelerator):
        raise ZeroDivisionError


def test_the_rows_of_some_pairs():
    chosen = torch.tensor([True, False, True])
    assert of_pairs(torch.arange(3), chosen).tolist() == [0, 2]
    assert of_pairs(torch.arange(6), chosen).tolist() == [0, 2, 3, 5]
    assert of_pairs("text", chosen) == "text" and of_pairs(torch.tensor(1), chosen).item() == 1


def test_the_log_of_parts_is_their_mean_by_pairs():
    numbers = [9.0, 1.0, 4.0]
    memory_recovery._join(numbers, 1, [2 / 3, 1 / 3])
    assert numbers == [9.0, pytest.approx(2.0)]
    totals = [40]
    memory_recovery._join(totals, 1, [0.5, 0.5])
    assert totals == [40]
