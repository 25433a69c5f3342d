"""A run measured again says what it said at its end, and two folders say the same as the run they come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from making import load_policy, make_adapter, make_pairs, quiet, short_recipe, train_in, write_jsonl
from peft import PeftModel
from transformers import AutoTokenizer

from dpo_recipes import Data, RecipeError, Run, apply, evaluate, load, train
from dpo_recipes.errors import UsageError


def length(prompt: str, completion: str) -> float:
    return float(len(completion))


@pytest.fixture
def run(finished) -> Run:
    """A run with a value that the command line has changed."""
    return finished().run


def assert_same(numbers: dict, others: dict) -> None:
    """The same names, and the same numbers up to rounding."""
    assert numbers.keys() == others.keys()
    for name, value in numbers.items():
        if name != "reliability":
            assert others[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.slow
def test_a_run_measured_again_says_what_it_said_and_is_written_anew(run, tmp_path):
    run = copied(run, tmp_path)
    at_the_end = run.evaluation
    samples, pairs = run.samples, (run.path / "pairs.jsonl").read_text()
    for name in ("evaluation.json", "samples.jsonl", "pairs.jsonl"):
        (run.path / name).unlink()

    result = evaluate(run.path, console=quiet())
    assert_same(at_the_end["before"], result["before"])
    assert_same(at_the_end["after"], result["after"])
    assert run.evaluation["after"] == json.loads(json.dumps(result["after"]))
    assert [row["policy"] for row in run.samples] == [row["policy"] for row in samples] and len(samples) == 6
    assert (run.path / "pairs.jsonl").read_text() == pairs and len(pairs.splitlines()) == 6
    assert result["after"]["rewards/margins"] > 0 and "win_rate" in result["after"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["None", "QLoRA(r=4)", "continued"])
def test_so_does_one_of_every_other_way_to_train(finished, tmp_path, adapter):
    run = copied(finished(adapter).run, tmp_path)
    at_the_end = run.evaluation
    result = evaluate(run, console=quiet())
    assert_same(at_the_end["before"], result["before"])
    assert_same(at_the_end["after"], result["after"])
    assert at_the_end["after"]["rewards/margins"] > 0


@pytest.mark.slow
def test_other_held_out_pairs_than_a_runs_own_are_refused_as_some_may_have_been_trained_on(tiny, tmp_path):
    train_file = write_jsonl(tmp_path / "train.jsonl", make_pairs())
    held_out = write_jsonl(tmp_path / "eval.jsonl", make_pairs(6, seed=1))
    data = Data(str(train_file), eval=str(held_out))
    run = train_in(tmp_path, short_recipe(tiny(), data=data, answers=2))
    at_the_end = run.evaluation

    write_jsonl(train_file, make_pairs(12, seed=2))  # which nothing is measured on
    assert_same(at_the_end["after"], evaluate(run, console=quiet())["after"])
    at_the_end = run.evaluation

    write_jsonl(held_out, make_pairs(8, seed=1))
    with pytest.raises(
        RecipeError, match="cannot be measured again on its own held-out pairs: the eval pairs are not"
    ) as refused:
        evaluate(run, console=quiet())
    assert str(refused.value).endswith(f"name pairs to measure it on: dpo-recipes evaluate {run.path} --data FILE")
    assert run.evaluation == at_the_end
    assert len(evaluate(run, data=str(held_out), console=quiet())["samples"]) == 8


@pytest.mark.slow
def test_two_folders_on_the_pairs_of_a_run_say_what_the_run_says(run, tiny, pairs_file, tmp_path):
    held_out = {json.loads(line)["row"] for line in (run.path / "pairs.jsonl").read_text().splitlines()}
    rows = [row for number, row in enumerate(make_pairs()) if str(number) in held_out]
    data = write_jsonl(tmp_path / "held_out.jsonl", rows)

    changes = ["beta=0.4", "max_length=112"]
    result = evaluate(
        policy=str(run.path / "model"), data=str(data), changes=changes, to=tmp_path / "out", console=quiet()
    )
    after = run.evaluation["after"]
    for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "perplexity/chosen"):
        assert result["after"][name] == pytest.approx(after[name], rel=1e-4), name
    assert result["before"]["logps/chosen"] == pytest.approx(run.evaluation["before"]["logps/chosen"], rel=1e-5)
    assert result["before"]["rewards/accuracies"] == 0.5 and "loss" not in result["before"]
    assert result["reference"] == str(tiny())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "samples.jsonl", "pairs.jsonl"}


@pytest.mark.slow
def test_answers_may_be_drawn_at_another_temperature(run, tmp_path):
    at_1 = run.evaluation["after"]
    nearly_greedy = evaluate(run, changes=["answers_temperature=0.01"], to=tmp_path, console=quiet())
    assert "answers/temperature" not in at_1
    assert nearly_greedy["before"]["answers/temperature"] == nearly_greedy["after"]["answers/temperature"] == 0.01
    assert nearly_greedy["after"]["rewards/margins"] == pytest.approx(at_1["rewards/margins"], rel=1e-5)
    assert nearly_greedy["after"]["kl"] != pytest.approx(at_1["kl"], rel=0.05)


@pytest.mark.slow
def test_a_limit_may_be_set_for_a_finished_run(run, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("Bread needs flour and water.\nThe bus leaves at ten.\n", "utf-8")
    result = evaluate(run, changes=[f"forgetting={texts}", "forgetting_limit=1e-9"], to=tmp_path, console=quiet())
    moved = result["after"]["forgetting/kl_per_token"]
    assert moved > 0 and moved != run.evaluation["after"]["forgetting/kl_per_token"]
    assert "forgetting_limit allows 1e-09" in result["over_budget"]


@pytest.mark.slow
def test_a_run_that_has_moved_too_far_ends_with_an_error_behind_all_its_numbers(recipe_file, tmp_path):
    recipe = apply(load(recipe_file), ["forgetting_limit=1e-9"])
    with pytest.raises(RecipeError, match="forgetting_limit allows 1e-09. All numbers and the model are kept"):
        train_in(tmp_path, recipe)
    [left] = (tmp_path / "runs").iterdir()
    assert Run(left).evaluation["after"]["forgetting/kl_per_token"] > 1e-9 and (left / "model").is_dir()


@pytest.mark.slow
def test_a_run_on_other_pairs_leaves_its_own_numbers_alone(run, tmp_path):
    at_the_end = (run.path / "evaluation.json").read_text()
    data = write_jsonl(tmp_path / "others.jsonl", make_pairs(10, seed=9))
    result = evaluate(run, data=str(data), console=quiet())
    assert result["after"]["pairs"] == 10 and result["written"] is None
    assert (run.path / "evaluation.json").read_text() == at_the_end


@pytest.mark.slow
def test_two_whole_models_are_compared_and_the_order_matters(tiny, pairs_file):
    def compared(policy, reference):
        return evaluate(policy=str(policy), reference=str(reference), data=str(pairs_file), console=quiet())["after"]

    one, other = tiny(), tiny(seed=1)
    forth, back = compared(one, other), compared(other, one)
    assert forth["rewards/margins"] == pytest.approx(-back["rewards/margins"], rel=1e-4)
    assert forth["kl"] > 1 and back["kl"] > 1 and forth["pairs"] == 24
    assert forth["perplexity/chosen"] == pytest.approx(back["perplexity/chosen_reference"], rel=1e-5)


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory) -> list[Path]:
    """Three adapters: of one base, of the same base, and of another base of the same tokens."""
    folders = [tmp_path_factory.mktemp("adapter") for _ in range(3)]
    make_adapter(folders[0], tiny())
    make_adapter(folders[1], tiny(), seed=2)
    make_adapter(folders[2], tiny(seed=1), seed=3)
    return folders


def logp_of_chosen(folder: Path, base: Path) -> float:
    """Mean log-probability of the chosen sides of the pairs, by plain PEFT or Transformers, nats."""
    model = load_policy(base)
    if folder != base:
        model = PeftModel.from_pretrained(model, str(folder))
    tokenizer = AutoTokenizer.from_pretrained(base)
    sums = []
    for row in make_pairs():
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], return_dict=False)
        ids = torch.tensor([whole])
        with torch.no_grad():
            logps = model.eval()(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        sums.append(logps[len(prompt) - 1 :].sum().item())
    return sum(sums) / len(sums)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter, same base", "adapter, other base", "whole model", "same adapter"])
def test_an_adapter_may_be_the_reference(tiny, pairs_file, adapters, kind):
    policy, reference, base = adapters[0], adapters[1], tiny()
    if kind == "adapter, other base":
        reference, base = adapters[2], tiny(seed=1)
    elif kind == "whole model":
        policy = tiny(seed=1)
    elif kind == "same adapter":
        reference = policy
    result = evaluate(policy=str(policy), reference=str(reference), data=str(pairs_file), console=quiet())
    assert result["reference"] == str(reference)
    before, after = result["before"], result["after"]
    policy_base = policy if kind == "whole model" else tiny()
    assert before["logps/chosen"] == pytest.approx(logp_of_chosen(reference, base), rel=1e-5)
    assert after["logps/chosen"] == pytest.approx(logp_of_chosen(policy, policy_base), rel=1e-5)
    assert (after["kl"] == pytest.approx(0, abs=1e-4)) == (kind == "same adapter")


def test_an_adapter_as_the_reference_that_cannot_be_read_is_one_message(tiny, pairs_file, adapters, tmp_path):
    def refused(reference: Path, words: str) -> None:
        with pytest.raises(RecipeError, match=words):
            evaluate(policy=str(adapters[0]), reference=str(reference), data=str(pairs_file), console=quiet())

    def changed(name: str, **values) -> Path:
        folder = shutil.copytree(adapters[1], tmp_path / name)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return folder

    refused(changed("moved", base_model_name_or_path="/gone/base"), "is an adapter of /gone/base, .* no such folder")
    refused(changed("ia3", peft_type="IA3"), "reference=.* is a IA3 adapter")
    refused(changed("rank", r=2), r"does not fit the model, .* Of another shape than the model and its adapter_config")
    other = changed("other", base_model_name_or_path=str(tiny(num_hidden_layers=1)))
    refused(other, "does not fit the model, or is not whole. In its file, and not read by this model: .*layers.1")


def copied(run: Run, folder: Path) -> Run:
    return Run(shutil.copytree(run.path, folder / run.path.name))


def test_what_cannot_be_measured_is_one_message(run, tiny, pairs_file, tmp_path):
    with pytest.raises(UsageError, match="Name a run folder, .* or two models and pairs"):
        evaluate()
    with pytest.raises(UsageError, match="Name a run folder"):
        evaluate(run, policy="x")
    with pytest.raises(UsageError, match="'beta=1': a run is measured as it was trained"):
        evaluate(run, changes=["beta=1"])
    with pytest.raises(RecipeError, match="forgetting='nope.txt' cannot be read"):
        evaluate(run, changes=["forgetting=nope.txt"], console=quiet())
    with pytest.raises(RecipeError, match="There is no run folder"):
        evaluate(tmp_path / "nope")
    with pytest.raises(UsageError, match="is a whole model: say with --reference"):
        evaluate(policy=str(tiny()), data=str(pairs_file))

    unfinished = copied(run, tmp_path / "unfinished")
    shutil.rmtree(unfinished.path / "model")
    with pytest.raises(RecipeError, match="holds no model: the run has not finished"):
        evaluate(unfinished)

    changed = copied(run, tmp_path / "changed")
    recipe = (changed.path / "recipe.py").read_text()
    (changed.path / "recipe.py").write_text(recipe.replace("max_length=112", "max_length=96"))
    with pytest.raises(RecipeError, match="trained with other values .*: max_length was 112 and is 96 now"):
        evaluate(changed)


@pytest.mark.slow
def test_a_recipe_that_was_a_value_with_functions_leads_to_the_other_way(tiny, pairs_file, tmp_path):
    recipe = short_recipe(tiny(), pairs_file, reward=length, trl={"gradient_checkpointing": False, "max_steps": 1})
    run = train_in(tmp_path, recipe)
    with pytest.raises(RecipeError, match=r"cannot be loaded again: .* dpo-recipes evaluate --policy .*/model"):
        evaluate(run)


@pytest.mark.slow
def test_a_reference_that_moved_is_said_and_is_not_there_any_more(tiny, pairs_file, tmp_path):
    trl = {"gradient_checkpointing": False, "max_steps": 3, "sync_ref_model": True, "ref_model_sync_steps": 2}
    recipe = short_recipe(tiny(), pairs_file, adapter=None, trl=trl)
    console = quiet()
    run = train(recipe, runs=tmp_path, console=console)
    assert "a second copy of the weights, moved towards the policy (TR-DPO)" in console.file.getvalue()
    with pytest.raises(RecipeError, match="moved while it trained, and is not kept"):
        evaluate(run)
