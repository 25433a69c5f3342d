"""The model card: the README.md beside the trained weights."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..recipe.adapters import QLoRA
from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings

WORTH_MORE_BITS = 0.1  # of what an adapter has changed, lost to the rounding of a merged model


def model_card(
    recipe: Recipe,
    settings: Settings,
    *,
    base: str,
    base_is_on_the_hub: bool,
    folder: Path,
    who: Mapping[str, Any],
    data: Mapping[str, Any],
    reading: Mapping[str, Any],
    versions: Mapping[str, str],
    pairs: int,
    results: Iterable[tuple[str, str, str, str]],
    observations: Iterable[Mapping[str, Any]] = (),
    auto_class: str = "AutoModelForCausalLM",
) -> str:
    """What was trained, from what, on what, how, and how far it got, as Markdown with the hub's front matter.

    `base` is the hub id or the folder of the start, `folder` that of the trained model. `who` holds policy and
    reference in words, as in reference.json; `data` is data.json, `reading` is `pair_sharing` of evaluation.json.
    `results` are the rows of the closing table, measured
    on so many held-out `pairs`: what is measured, its value before, its value after, and its interval or error.
    `observations` are what the rules of the guard have seen, as in metrics.jsonl. `auto_class`: the class of
    Transformers that loads the model.
    """
    text = [
        *_front_matter(recipe, base if base_is_on_the_hub else None),
        f"# {recipe.name}",
        "",
        "Trained with Direct Preference Optimization (arXiv 2305.18290) through TRL, by dpo-recipes.",
        "",
        f"* Policy: {who['policy']}.",
        f"* Reference: {who['reference']}.",
        f"* Data: {_data(recipe, data)}.",
        f"* Loss: {', '.join(sorted(recipe.loss_names))}, beta {recipe.beta:g}.",
        f"* Training: {_training(recipe, settings)}.",
        f"* Pairs: {reading_in_words(reading)}.",
        f"* Versions: {', '.join(f'{package} {version}' for package, version in versions.items())}.",
        "",
        f"## Held out: {pairs} pairs",
        "",
        _table_row("", "before", "after", "95 % interval or s.e."),
        "| --- | ---: | ---: | --- |",
    ]
    text += [_table_row(*result) for result in results]
    text += ["", "## Seen while training", "", *_seen(observations)]
    text += ["", "## Load it", "", "```python", *_loading_code(recipe, settings, base, folder, auto_class), "```"]
    return "\n".join(text) + "\n"


def _front_matter(recipe: Recipe, base_on_the_hub: str | None) -> list[str]:
    """What the hub reads of a card."""
    lines = ["---", f"library_name: {'peft' if recipe.adapter else 'transformers'}"]
    if base_on_the_hub is not None:
        lines.append(f"base_model: {base_on_the_hub}")
    return [*lines, "tags: [trl, dpo]", "---"]


def scaled_card(
    recipe: Recipe,
    settings: Settings,
    *,
    base: str,
    base_is_on_the_hub: bool,
    folder: Path,
    result: Mapping[str, Any],
    auto_class: str,
) -> str:
    """The card of a model that lies between a run's reference and its policy; `result` is its export.json."""
    factor = result["dial"]
    text = [
        *_front_matter(recipe, base if base_is_on_the_hub else None),
        f"# {recipe.name}, the dial at {factor:g}",
        "",
        f"Made by dpo-recipes of the run `{result['run']}`, which was trained with beta {recipe.beta:g}: "
        f"{result['form']}, {factor:g} of the way from the reference to the policy.",
        "",
        f"It stands for what training with beta {result['beta']:.3g} would have given, and is two approximations away "
        f"from that. Decoding with the beta dial at {factor:g} mixes the logits of policy and reference token by token "
        "(decoding-time realignment, arXiv 2402.02992), which is near the other beta; this one model, whose "
        "weights lie between the two, is near that mix.",
        "",
        nearness_in_words(result),
    ]
    if result["warning"]:
        text += ["", result["warning"]]
    text += [
        "",
        "## How near it is to the exact dial",
        "",
        _table_row("", "exact dial", "this model"),
        "| --- | ---: | ---: |",
    ]
    text += [_table_row(*row) for row in nearness_rows(result)]
    text += ["", "## Load it", "", "```python", *_loading_code(recipe, settings, base, folder, auto_class), "```"]
    return "\n".join(text) + "\n"


def merged_card(
    recipe: Recipe, *, base_is_on_the_hub: bool, folder: Path, result: Mapping[str, Any], auto_class: str
) -> str:
    """The card of a run's adapter merged into its base; `result` is its export.json."""
    base = result["base"]
    text = [
        "---",
        "library_name: transformers",
        *([f"base_model: {base}"] if base_is_on_the_hub else []),
        "tags: [trl, dpo]",
        "---",
        f"# {recipe.name}, merged",
        "",
        f"Made by dpo-recipes of the run `{result['run']}`: the adapter that it trained with Direct Preference "
        f"Optimization (arXiv 2305.18290), in the weights of its base, {base}. It needs no adapter beside it.",
        "",
        merged_in_words(result),
        "",
        "## Load it",
        "",
        "```python",
        *_code_of_whole_model(recipe, result["dtype"], folder, auto_class),
        "```",
    ]
    return "\n".join(text) + "\n"


def merged_in_words(result: Mapping[str, Any]) -> str:
    """How near a merged model is to the adapter that it was made of, and what it was merged into."""
    difference, from_base = result["difference"], result["from_base"]
    exact = result["in_32_bits"]["mean"]
    sentences = [
        f"Over the {result['tokens']:,} answer tokens of {result['pairs']:,} held-out pairs, its log-probabilities are "
        f"{difference['mean']:.2g} nats per token away from those of the adapter on its base (at most "
        f"{difference['largest']:.2g}), where the base alone is {from_base['mean']:.2g} away; up to half of that is "
        f"accepted, as the cost of weights in {result['dtype']}. Merged in 32 bits it would be {exact:.1g}."
    ]
    for other in result.get("bases", ()):
        if other["merged_into"] != result["merged_into"]:
            sentences.append(
                f"It was trained over 4 bits and is merged into {result['merged_into']}; merged into "
                f"{other['merged_into']} it would be {other['mean']:.2g} away."
            )
    return " ".join(sentences)


def rounding_in_words(result: Mapping[str, Any]) -> str | None:
    """What rounding has taken of a merged adapter, and how to keep it; None where that is little."""
    lost = result["difference"]["mean"] / result["from_base"]["mean"]
    if lost < WORTH_MORE_BITS or result["dtype"] == "float32":
        return None
    more_bits = "--dtype float32 keeps all of it, in twice the room"
    if result["dtype"] == "bfloat16":
        more_bits += "; --dtype float16 keeps far more in the same room, for what computes in float16 too"
    return f"Rounding to {result['dtype']} costs as much as {lost:.0%} of what training has changed. {more_bits}."


def nearness_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what is measured, of decoding with the exact dial, of the exported model), as texts."""
    exact, exported = result.get("exact", {}), result.get("exported", {})
    rows = []
    for name, words, form in (
        ("kl", "KL to the reference, nats", ".3f"),
        ("reward", "reward of sampled answers", "+.3f"),
        ("win_rate", "win rate over the reference", ".3f"),
        ("answers/tokens", "length of answers, tokens", ".1f"),
    ):
        if name in exact:
            rows.append((words, _with_error(exact, name, form), _with_error(exported, name, form)))
    return rows


def nearness_in_words(result: Mapping[str, Any]) -> str:
    """How far decoding with the exact dial is from the exported model, and what that does to the reward."""
    sentences = []
    for name, where in (("along_answers", "of answers drawn with it"), ("along_pairs", "of held-out pairs")):
        if name in result:
            away = result[name]
            sentences.append(
                f"Over the tokens {where}, the exact dial is {away['exported']:.2g} nats per token away from this "
                f"model (from the policy {away['policy']:.2g}, from the reference {away['reference']:.2g})."
            )
    if "reward_difference" in result:
        sentences.append(
            "The reward of this model's answers differs from that of the dial's by "
            f"{_with_error(result, 'reward_difference', '+.3f')}, prompt by prompt."
        )
    away = result.get("along_answers") or result["along_pairs"]
    nearest = min(("policy", "reference"), key=lambda side: away[side])
    if away["exported"] >= away[nearest]:
        sentences.append(f"That is no approximation: the {nearest} itself is nearer to the dial than this model.")
    return " ".join(sentences)


def _with_error(numbers: Mapping[str, Any], name: str, form: str) -> str:
    error = numbers.get(f"{name}_stderr")
    behind = f" +- {error:{form.lstrip('+')}}" if error else ""
    return f"{numbers[name]:{form}}{behind}"


def _seen(observations: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the rules of the guard have said while the run went on, a line each."""
    lines = []
    for each in observations:
        seen = " ".join(each["seen"].split())  # a rule of the recipe's own may say it in several lines
        lines.append(f"* Step {each['step']:,}, {each['level']}, `{each['rule']}`: {seen}")
    return lines or ["Nothing: none of the rules that watch over the log has spoken."]


def _data(recipe: Recipe, data: Mapping[str, Any]) -> str:
    """The data set, its split and, where they were counted, its pairs and what tells them from all others."""
    text = f"{recipe.data.name}, split {recipe.data.train}"
    if "kept" in data["train"]:  # of a stream nothing is counted beforehand
        text += f", {data['train']['kept']:,} pairs"
    if "fingerprint" in data:
        text += f" (fingerprint {data['fingerprint']})"
    return text


def _training(recipe: Recipe, settings: Settings) -> str:
    """The numbers of the optimisation."""
    if recipe.max_steps is not None:
        duration = f"{recipe.max_steps:,} steps"
    elif recipe.num_train_epochs == 1:
        duration = "1 epoch"
    else:
        duration = f"{recipe.num_train_epochs:g} epochs"

    text = (
        f"learning rate {settings.learning_rate:g}, {duration}, {recipe.global_batch_size} pairs a step, "
        f"seed {recipe.seed}"
    )
    if recipe.max_length is not None:
        text += f", at most {recipe.max_length:,} tokens a pair's side"
    return text


def reading_in_words(reading: Mapping[str, Any]) -> str:
    """Whether each pair was read once, and how far that was measured to be from TRL's own forward."""
    if reading["read_once"]:
        return (
            f"each read once, with log-probabilities within {reading['largest_difference']:.1g} nats per token of "
            "TRL's own forward, where both were computed"
        )
    if reading["why_not"] is not None:
        return f"each read twice and padded, as in TRL: {reading['why_not']}"
    return "each read twice and padded, as in TRL, because pair_sharing is off"


def _loading_code(recipe: Recipe, settings: Settings, base: str, folder: Path, auto_class: str) -> list[str]:
    """Lines of Python that make `model` and `tokenizer`, as the model was when it was measured."""
    if recipe.adapter is None:
        return _code_of_whole_model(recipe, settings.weights, folder, auto_class)

    options = _loading_options(recipe, settings.weights)
    if recipe.revision:
        options += f', revision="{recipe.revision}"'
    imported = f"{auto_class}, AutoTokenizer"
    four_bit = []
    if isinstance(recipe.adapter, QLoRA):
        imported += ", BitsAndBytesConfig"
        options += ", quantization_config=four_bit"
        four_bit = [
            "four_bit = BitsAndBytesConfig(",
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f'bnb_4bit_use_double_quant={recipe.adapter.double_quant}, bnb_4bit_compute_dtype="{settings.weights}"',
            ")",
        ]
    return [
        "from peft import PeftModel",
        f"from transformers import {imported}",
        "",
        _folder_line(folder),
        *four_bit,
        f'base = {auto_class}.from_pretrained("{base}", {options})',
        "model = PeftModel.from_pretrained(base, folder)",
        TOKENIZER_LINE,
    ]


TOKENIZER_LINE = "tokenizer = AutoTokenizer.from_pretrained(folder)"


def _code_of_whole_model(recipe: Recipe, dtype: str, folder: Path, auto_class: str) -> list[str]:
    return [
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        _folder_line(folder),
        f"model = {auto_class}.from_pretrained(folder, {_loading_options(recipe, dtype)})",
        TOKENIZER_LINE,
    ]


def _loading_options(recipe: Recipe, dtype: str) -> str:
    options = f'dtype="{dtype}"'
    if recipe.trust_remote_code:
        options += f", trust_remote_code={recipe.trust_remote_code}"
    return options


def _folder_line(folder: Path) -> str:
    return f'folder = "{folder.as_posix()}"  # or wherever this card lies now'


def _table_row(*cells: str) -> str:
    """One line of a Markdown table; a recipe's own measure may have any name."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
