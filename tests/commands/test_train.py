"""The spine on tiny models: every mode runs, leaves a whole run folder, and says who the reference was."""

from __future__ import annotations

import errno
import io
import json
import re

import pytest
import torch
from making import DATED, make_pairs, short_recipe, train_in, write_jsonl, write_splits
from rich.console import Console

from dpo_recipes import Data, LoRA, RecipeError, Run, apply, load, progress, report, train

FILES = {
    "recipe.py",
    "recipe.json",
    "trl.json",
    "environment.json",
    "data.json",
    "reference.json",
    "metrics.jsonl",
    "evaluation.json",
    "samples.jsonl",
    "pairs.jsonl",
    "report.html",
    "model",
}


def run_it(recipe, tmp_path) -> tuple[Run, str]:
    """(the run, everything it printed)."""
    said = io.StringIO()
    return train(recipe, runs=tmp_path / "runs", console=Console(file=said, width=300)), said.getvalue()


@pytest.fixture
def lora_run(finished) -> tuple[Run, str]:
    return finished()


def test_a_run_leaves_everything_and_nothing_half_written(lora_run):
    run, _ = lora_run
    assert {p.name for p in run.path.iterdir()} == FILES
    kept = {p.name for p in (run.path / "model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= kept
    assert not [p for p in run.path.rglob("*") if ".tmp" in p.name]
    assert not [p for p in (run.path / "model").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_a_warning_says_of_which_pairs_it_is(lora_run):
    _, said = lora_run
    assert "\ntrain length: To pick the longer side is right in 100.0% of the pairs." in said


def test_a_run_reads_back_as_values(lora_run):
    run, _ = lora_run
    losses = [m for m in run.metrics if "loss" in m]
    assert [m["step"] for m in losses] == [1, 2, 3, 4]
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen", "grad_norm"} <= losses[0].keys()
    before, after = run.evaluation["before"], run.evaluation["after"]
    assert before["loss"] == pytest.approx(0.693147, abs=1e-5) and before["rewards/accuracies"] == 0.5
    assert after["loss"] < before["loss"] and after["rewards/margins"] > 0 and after["pairs"] == 6
    low, high = after["rewards/accuracies_interval"]
    assert 0 <= low <= after["rewards/accuracies"] <= high <= 1
    assert run.recipe["adapter.r"] == {"value": 4, "origin": "recipe file"}
    assert run.recipe["adapter.alpha"] == {"value": 8, "origin": "mode default"}
    assert run.data["train"]["kept"] == 18 and run.data["eval"]["kept"] == 6
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["versions"]["trl"].startswith("1.16") and environment["seed"] == 42
    assert json.loads((run.path / "trl.json").read_text())["beta"] == 0.4
    of_both = {f"{model}{value}" for model in ("reference", "policy") for value in ("", "_ended", "_tokens", "_reward")}
    assert {"prompt", "kl", "win_rate", *of_both} == run.samples[0].keys()


def test_the_first_lines_say_who_policy_and_reference_are(lora_run, tiny):
    _, said = lora_run
    assert f"Policy: {tiny()} + LoRA of rank 4 (3,712 of 36,128 parameters train)." in said
    assert "Reference: the same model with the adapter off." in said
    assert "18 pairs to train on, 6 held out; 6 pairs a step = 3 pairs x 2 accumulation; float32 on cpu." in said
    assert "pairs ranked as labelled" in said and "95 % interval" in said


def sequence_logp(model, tokenizer, row) -> float:
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
    ids = torch.tensor([tokenizer.apply_chat_template(row["prompt"] + row["chosen"])["input_ids"][:112]])
    with torch.no_grad():
        logp = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return logp[len(prompt) - 1 :].sum().item()


def enough(rows, run):
    """A rule of a recipe's own."""
    if "loss" not in rows[-1]:
        return None
    return ("stop", "Enough.") if rows[-1]["step"] == 2 else f"Of {run.steps} steps."


@pytest.mark.slow
def test_what_the_rules_see_is_said_written_down_and_shown_and_a_rule_can_stop_the_run(tiny, pairs_file, tmp_path):
    said = io.StringIO()
    recipe = short_recipe(tiny(), pairs_file, rules={"enough": enough})
    with pytest.raises(RecipeError, match=r"^The rule enough stops the run at step 2: Enough\."):
        train(recipe, runs=tmp_path / "runs", console=Console(file=said, width=300))
    [folder] = (tmp_path / "runs").iterdir()
    run = Run(folder)
    assert [(row["step"], row["level"], row["seen"]) for row in run.observations] == [
        (1, "warning", "Of 3 steps."),
        (2, "stop", "Enough."),
    ]
    assert "\nWarning at step 1, enough: Of 3 steps.\n" in said.getvalue()
    assert [row["step"] for row in run.metrics if "window/accuracies" in row] == [2]  # from the first update on
    assert "It was stopped at step 2 of 3" in report(folder).read_text()


@pytest.mark.slow
def test_why_a_run_was_stopped_is_the_last_line_of_its_log(tiny, pairs_file, tmp_path):
    trl = {"gradient_checkpointing": False, "max_steps": 6, "lr_scheduler_type": "constant"}
    with pytest.raises(RecipeError, match="No trainable tensor of .* has changed"):
        run_it(short_recipe(tiny(), pairs_file, learning_rate=1e-60, trl=trl), tmp_path)
    [folder] = (tmp_path / "runs").iterdir()
    last = Run(folder).observations[-1]
    assert (last["step"], last["rule"], last["level"]) == (4, "stopped", "stop")  # the last that was logged
    assert last["seen"].startswith("No trainable tensor of")


def test_the_rows_that_a_rule_of_ones_own_is_tried_on_have_the_names_of_a_real_log(lora_run):
    from dpo_recipes.guard.own_rules import FIRST_ROWS

    run, _ = lora_run
    steps = [row for row in run.metrics if "loss" in row]
    evaluations = [row for row in run.metrics if "eval_loss" in row]
    pace = {"tokens_per_second", "memory_bytes", "eval_model_preparation_time"}  # of the machine, and not of the run
    real = [evaluations[0], steps[0], steps[-1], next(row for row in run.metrics if "train_runtime" in row)]
    for tried, row in zip(FIRST_ROWS, real, strict=False):
        absent = {name for name in tried if name.endswith("chosen_shorter")}  # these pairs have none
        assert tried.keys() - absent == row.keys() - pace


FULL = {
    "a GPU": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 24 GiB"),
        "There is not enough memory: CUDA out of memory. `dpo-recipes check recipe`, with the same changes behind it,",
    ),
    "this machine": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        "There is not enough memory: [enforce fail",
    ),
}


@pytest.mark.parametrize(("error", "words"), FULL.values(), ids=FULL)
def test_memory_that_does_not_suffice_is_one_message_that_leads_to_the_ways_out(
    tiny, pairs_file, tmp_path, monkeypatch, error, words
):
    from dpo_recipes.training.trainer import RecipeTrainer

    def train_until_full(trainer, **_options):
        raise error

    monkeypatch.setattr(RecipeTrainer, "train", train_until_full)
    with pytest.raises(RecipeError) as caught:
        run_it(short_recipe(tiny(), pairs_file), tmp_path)
    [left] = (tmp_path / "runs").glob("*")
    assert str(caught.value).startswith(words)
    assert str(caught.value).endswith(
        f"what to change, the best first. What there is of the run stays in {left}. "
        f"To go on with it: train(recipe, resume={str(left)!r})"
    )


@pytest.mark.slow
def test_a_log_tells_of_every_stage_what_is_done_and_how_far_it_is(tiny, tmp_path, monkeypatch, capfd):
    """All lines of a run in which each stage takes longer than a log may be silent."""

    def say_at_once(clock):
        clock._running.append(clock)
        clock.tick()

    monkeypatch.setattr(progress, "FIRST_LINE_AFTER", 0.0)
    monkeypatch.setattr(progress._Clock, "start", say_at_once)
    monkeypatch.setattr(progress._Clock, "stop", lambda clock: clock._running.remove(clock))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where no reference is known yet
    options = {"gradient_checkpointing": False, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 3}
    pairs_file = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(24, seed=79))  # which no test has read before
    recipe = short_recipe(tiny(), pairs_file, adapter=None, learning_rate=1e-6, trl=options)
    capfd.readouterr()  # what making the model has written
    run, said = run_it(recipe, tmp_path)

    lines = [line for line in said.splitlines() if re.match(r"[A-Zs]", line) and line[:5] != "Pairs"]
    lines = [re.sub(r"[\d.,]+ tokens", "N tokens", line) for line in lines]
    lines = [re.sub(r"\d+\.\d\d GB", "N GB", line) for line in lines]
    lines = [re.sub(r"0:00:\d\d", "TIME", line) for line in lines]
    lines = [re.sub(r"(loss|accuracy|margin) \S+", r"\1 N", line) for line in lines]
    expected = [
        "Loading the libraries ...",
        "Loading the tokenizer ...",
        "Checking the model's files ...",
        "Loading TRL ...",
        "Loading and checking the model ...",
        "Preparing the trainer ...",
        "Reference log-probabilities, train pairs: 0 of 18 pairs ...",
        "Reference log-probabilities, eval pairs: 0 of 6 pairs ...",
        "Held-out pairs before training: 0 of 6 pairs ...",
        "step 0/4 ...",
        "step 1/4  batch: loss N  accuracy N  margin N  N tokens/s  N GB  TIME left",
        "step 2/4  batch: loss N  accuracy N  margin N  N tokens/s  N GB  TIME left",
        "Writing the checkpoint of step 2 ...",
        "step 3/4  batch: loss N  accuracy N  margin N  N tokens/s  N GB  TIME left",
        "Held-out pairs at step 3: 0 of 6 pairs ...",
        "step 4/4  batch: loss N  accuracy N  margin N  N tokens/s  N GB",
        "Writing the checkpoint of step 4 ...",
        "Trained 4 steps in TIME: N tokens a second, N GB of memory at most.",
        "Writing the model ...",
        "Held-out pairs after training: 0 of 6 pairs ...",
        "Loading and checking the reference ...",
        "Answers of the reference ...",
        "Answers of the policy ...",
    ]
    assert [line for line in expected if line not in lines] == []
    told = [line for line in lines if line in expected]
    assert sorted(told, key=expected.index) == told  # in this order
    assert "Reading the rows ..." in lines and "Loading weights: 0 of" in said
    assert f"Reading {pairs_file} (train): 0 of 24 rows ..." in lines
    assert "Tokenizing train pairs: 0 of 18 pairs ..." in lines
    assert capfd.readouterr() == ("", "")  # nothing comes from the libraries themselves

    of_steps = [log for log in run.metrics if "loss" in log]
    assert all(log["tokens_per_second"] > 0 and log["memory_bytes"] > 50e6 for log in of_steps)
    tokens = [log["num_tokens"] for log in of_steps]
    [whole] = [log for log in run.metrics if "train_runtime" in log]
    assert tokens == sorted(tokens) and whole["memory_bytes"] >= of_steps[0]["memory_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "tolerance"), [("LoRA(r=4)", 1e-4), ("QLoRA(r=4)", 2e-2), ("None", 1e-4)])
def test_the_saved_model_is_the_one_that_was_measured(finished, adapter, tolerance):
    run, _ = finished(adapter)
    model, tokenizer = run.load_model()
    rows = make_pairs()
    held_out = [rows[int(pair["row"])] for pair in run.pairs]
    mean = sum(sequence_logp(model, tokenizer, row) for row in held_out) / len(held_out)
    assert len(held_out) == 6
    assert mean == pytest.approx(run.evaluation["after"]["logps/chosen"], rel=tolerance)
    assert run.evaluation["after"]["logps/chosen"] != pytest.approx(run.evaluation["before"]["logps/chosen"], rel=1e-3)


def test_the_model_card_loads_the_model_and_says_how_it_was_made(lora_run):
    run, _ = lora_run
    text = (run.path / "model" / "README.md").read_text()
    assert "learning rate 0.01, 4 steps, 6 pairs a step, seed 42" in text
    assert run.data["fingerprint"] in text and "trl 1.16" in text
    names: dict = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)  # the README of our own run
    ids = names["tokenizer"]("Question 1", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(names["model"](**ids).logits, run.load_model()[0](**ids).logits)


@pytest.mark.slow
def test_full_fine_tuning_holds_one_model_and_says_so(finished):
    run, said = finished("None")
    assert "all weights (32,416 of 32,416 parameters train)" in said
    assert "Reference: the weights it starts from, as log-probabilities computed before training." in said
    assert run.reference["kind"] == "start weights" and run.reference["precomputed"]
    assert run.samples[0]["reference"] != run.samples[0]["policy"]


@pytest.mark.slow
def test_a_continued_adapter_is_compared_with_its_frozen_copy(finished, lora_run):
    start = lora_run[0].path / "model"
    run, said = finished("continued")
    assert f"LoRA continued from {start}" in said
    assert f"Reference: the same model with the frozen copy of {start}." in said
    before = run.evaluation["before"]
    assert before["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert before["logps/chosen"] == pytest.approx(lora_run[0].evaluation["after"]["logps/chosen"], rel=1e-4)
    assert not (run.path / "model" / "ref").exists()
    assert {n.split(".")[-2] for n, _ in run.load_model()[0].named_parameters() if "lora_" in n} == {"default"}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["LoRA(r=4)", "None"])
def test_another_model_can_be_the_reference(finished, tiny, adapter):
    other = tiny(seed=7)
    run, said = finished(adapter, (f"reference={other}",))
    assert f"Reference: {other}, as log-probabilities computed before training." in said
    # The start is not the reference, and is not stopped for it
    assert abs(run.evaluation["before"]["rewards/chosen"]) > 0.1
    assert finished(adapter).run.reference["fingerprint"] != run.reference["fingerprint"]


@pytest.mark.slow
def test_another_model_as_reference_does_not_get_the_continued_adapter(finished, tiny):
    changes = (f"reference={tiny(seed=7)}",)
    runs = [finished(adapter, changes).run for adapter in ("continued", "LoRA(r=4)")]
    shown = [[s["reference"] for s in run.samples] for run in runs]
    assert shown[0] == shown[1] and runs[0].reference["fingerprint"] == runs[1].reference["fingerprint"]


@pytest.mark.slow
def test_plain_strings_train_without_a_template_and_end_with_the_end_token(tiny, tmp_path):
    rows = [{"prompt": f"Q{i}: lamp?", "chosen": f" red {i} thanks", "rejected": f" blue {i}"} for i in range(16)]
    data = Data(str(write_jsonl(tmp_path / "text.jsonl", rows)), format="text", eval=0.25)
    run, _ = run_it(short_recipe(tiny(), data=data), tmp_path)
    assert run.data["text"] is True and isinstance(run.samples[0]["prompt"], str)
    assert "<|im_start|>" not in run.samples[0]["prompt"]


@pytest.mark.parametrize("where", ["dpo_recipes.data.preference_dataset.read", "dpo_recipes.data.tokenize.prepare"])
def test_a_full_disk_is_one_message_wherever_it_is_noticed(tiny, pairs_file, tmp_path, monkeypatch, where):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, full)
    with pytest.raises(RecipeError, match="cannot be kept in the cache .*No space left.* HF_DATASETS_CACHE names"):
        run_it(short_recipe(tiny(), pairs_file), tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


def test_conversations_need_a_template_and_the_message_names_the_ways_out(tiny, pairs_file, tmp_path):
    with pytest.raises(RecipeError, match=r"has no chat template .* data\.chat_template= .* data\.format=text"):
        run_it(short_recipe(tiny(template=None), pairs_file), tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_that_stops_before_its_first_log_leaves_no_folder(tiny, pairs_file, tmp_path):
    with pytest.raises(
        RecipeError, match="18 of 18 pairs .100.0%. are dropped at max_length=6. prompt fills max_length: 18"
    ):
        run_it(short_recipe(tiny(), pairs_file, max_length=6), tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_dpoconfig_refuses_is_one_message(tiny, pairs_file, tmp_path):
    trl = {"max_steps": 2, "lr_scheduler_type": "reduce_lr_on_plateau"}
    with pytest.raises(RecipeError, match="DPOConfig refuses the recipe: .*requires an eval strategy"):
        run_it(short_recipe(tiny(), pairs_file, trl=trl), tmp_path)


def test_what_trl_refuses_later_is_one_message_too(tiny, pairs_file, tmp_path, monkeypatch):
    from dpo_recipes.training import trainer

    def refuse(self, **arguments):
        raise ValueError("these two options do not go together")

    monkeypatch.setattr(trainer.RecipeTrainer, "__init__", refuse)
    with pytest.raises(RecipeError, match="TRL refuses the recipe: these two options do not go together"):
        run_it(short_recipe(tiny(), pairs_file), tmp_path)


def test_modules_that_the_model_does_not_have_are_refused(tiny, pairs_file, tmp_path):
    adapter = LoRA(r=4, target_modules=["no_such_layer"])
    with pytest.raises(RecipeError, match="'no_such_layer', and the model has no such module"):
        run_it(short_recipe(tiny(), pairs_file, adapter=adapter), tmp_path)


@pytest.mark.slow
def test_a_reward_adds_the_truth_to_the_numbers(tiny, pairs_file, tmp_path):
    def shorter(prompt: str, completion: str) -> float:
        assert prompt.startswith("Question")
        return -float(len(completion))

    def loud(prompt: str, completion: str) -> bool:
        return len(completion) > 0

    recipe = short_recipe(tiny(), pairs_file, reward=shorter, measures={"loud": loud})
    run, said = run_it(recipe, tmp_path)
    before, after = run.evaluation["before"], run.evaluation["after"]
    assert (before["win_rate"], before["kl"]) == (0.5, 0.0) and before["reward"] < 0
    assert after["kl"] > 0 and 0 <= after["win_rate"] <= 1 and after["reward_stderr"] > 0
    assert after["best_reward_at_kl"] >= before["reward"]
    assert 0 < after["measures/loud"] <= 1 and "measures/loud" in before
    assert "best reward at that KL" in said and "loud" in said
    card = (run.path / "model" / "README.md").read_text()
    assert f"## Held out: {after['pairs']} pairs" in card
    for words in ("pairs ranked as labelled", "reward of sampled answers", "best reward at that KL", "loud"):
        assert f"\n| {words} |" in card


@pytest.mark.slow
def test_prepare_makes_the_model_once_for_a_seed(tiny, pairs_file, tmp_path):
    import shutil

    made = []

    def prepare(folder, seed):
        made.append(seed)
        shutil.copytree(tiny(), folder / "model")
        shutil.copy(pairs_file, folder / "pairs.jsonl")

    data = Data("{prepared}/pairs.jsonl", eval=0.25)
    recipe = short_recipe("{prepared}/model", data=data, prepare=prepare)
    for _ in range(2):
        run_it(recipe, tmp_path)
    assert made == [42]


@pytest.mark.slow
def test_the_run_folder_keeps_the_recipe_file_which_gives_the_same_run_again(lora_run, recipe_file, tmp_path):
    run, _ = lora_run
    assert run.path.name.startswith("mine-")
    assert (run.path / "recipe.py").read_text() == recipe_file.read_text()
    again = train_in(tmp_path, apply(load(run.path / "recipe.py"), ["beta=0.4"]))
    assert losses(again) == losses(run) and again.samples == run.samples
    for when in ("before", "after"):
        assert again.evaluation[when] == run.evaluation[when]


@pytest.mark.slow
def test_another_seed_gives_another_run(finished):
    run, other = finished().run, finished("LoRA(r=4)", ("beta=0.4", "seed=2")).run
    assert losses(other) != losses(run)


def losses(run) -> list[float]:
    return [row["loss"] for row in run.metrics if "loss" in row]


@pytest.mark.slow
def test_answers_start_from_the_tokens_of_training_and_skip_dropped_prompts(tiny, tmp_path, monkeypatch):
    """Each row's own template switches are in the prompt that is answered; a dropped row is not asked at all."""
    from dpo_recipes.evaluation import answers as evaluate

    asked: list[list[int]] = []
    real = evaluate.generate
    monkeypatch.setattr(
        evaluate, "generate", lambda m, t, prompts, **how: asked.extend(prompts) or real(m, t, prompts, **how)
    )
    rows = make_pairs(10)
    for row in rows:
        row["chat_template_kwargs"] = {"enable_thinking": False}
    rows[7]["prompt"][0]["content"] = "long " * 60
    rows[1]["chosen"][0]["content"] += " and" * 60
    data = write_splits(tmp_path, rows[:5], rows[5:], template_date="2025-07-08", max_dropped=0.5)
    recipe = short_recipe(tiny(template=DATED), data=data, global_batch_size=3, max_length=192)
    run, said = run_it(recipe, tmp_path)
    tokenizer = run.load_model()[1]
    assert run.data["eval"]["dropped"] == {"prompt fills max_length": {"count": 1, "rows": ["2"]}}
    assert (
        re.search(r"dropped: prompt fills max_length +\S +0 +\S +1 \(rows 2\)", said)
        and len(run.samples) == 4
        and len(asked) == 8
    )
    texts = [tokenizer.decode(ids) for ids in asked]
    assert all("/no_think" in text and "08 July 2025" in text for text in texts)


def test_a_reward_without_a_name_that_fails_is_still_one_message(tiny, pairs_file, tmp_path):
    import functools

    def broken(prompt: str, completion: str, least: int) -> float:
        raise KeyError(least)

    nameless = functools.partial(broken, least=3)
    with pytest.raises(RecipeError, match=r"failed with prompt='Question .*: KeyError: 3"):
        run_it(short_recipe(tiny(), pairs_file, reward=nameless), tmp_path)


@pytest.mark.slow
def test_a_reward_that_fails_loses_neither_the_model_nor_the_numbers(tiny, pairs_file, tmp_path):
    calls = []

    def broken(prompt: str, completion: str) -> float:
        calls.append(completion)
        if len(calls) > 3:  # what is tried before training passes
            raise KeyError("no such item")
        return 0.0

    with pytest.raises(RecipeError, match=r"broken\(\) failed with prompt='Question .*: KeyError"):
        run_it(short_recipe(tiny(), pairs_file, reward=broken), tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert Run(folder).evaluation["after"]["pairs"] == 6 and (folder / "model" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_rows_of_every_layout_train_together_as_they_are(tiny, tmp_path):
    """Typed blocks, whole conversations with weights of messages, lists, rankings, several turns: all weigh 2."""

    def block(role, text, **more):
        return {"role": role, "content": [{"type": "text", "value": text}], **more}

    layouts: dict[str, list[dict]] = {name: [] for name in ("blocks", "messages", "lists", "ranking", "turns")}
    for number in range(8):
        question, good, bad = f"Where is lamp {number}?", f"in the attic {number}", f"not here {number}"
        prompt, replies = [block("user", question)], [f"{good}?", bad, "in the kitchen"]
        layouts["blocks"].append(
            {"prompt": prompt, "chosen": [block("assistant", good)], "rejected": [block("assistant", bad)], "weight": 2}
        )
        layouts["messages"].append(
            {
                "chosen_messages": [*prompt, block("assistant", good + "!", loss_weight=2.0)],
                "rejected_messages": [*prompt, block("assistant", bad + "!", loss_weight=2.0)],
            }
        )
        layouts["lists"].append({"prompt": question, "chosen": "yes", "rejected": ["no", "never"], "weight": "2"})
        layouts["ranking"].append({"prompt": question, "responses": replies, "scores": [3, 1, 1], "weight": 2.0})
        more = [block("user", "And then?"), block("assistant", f"nothing {number}")]
        layouts["turns"].append(
            {
                "chosen": [*prompt, block("assistant", good + "."), *more],
                "rejected": [*prompt, block("assistant", bad + "."), more[0], block("assistant", "all")],
                "weight": 2,
            }
        )
    files = {str(write_jsonl(tmp_path / f"{name}.jsonl", rows)): 1.0 for name, rows in layouts.items()}
    run, text = run_it(
        short_recipe(tiny(), data=Data(mix=files, eval=0.25, turns="all"), trl={"max_steps": 2}),
        tmp_path,
    )
    made = {"blocks": 8, "messages": 8, "lists": 16, "ranking": 16, "turns": 16}
    assert run.data["train"]["kept"] + run.data["eval"]["kept"] == sum(made.values())
    assert run.data["train"]["dropped"]["tie"]["count"] == 8
    assert run.data["weights"] == {"min": 2.0, "max": 2.0, "mean": 2.0}
    assert "16 rows have several replies to a prompt; they make 32 pairs (data.pairing=all)." in text
    assert run.evaluation["before"]["loss"] == pytest.approx(2 * 0.693147, abs=1e-4)
    assert [row["step"] for row in run.metrics if "loss" in row] == [1, 2]
