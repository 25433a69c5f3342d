"""Chat templates that lose, refuse or spoil text, and text that a template has rendered before: each is one message.

A case is refused by `train` before a weight is loaded, and nothing is left in the runs folder.
"""

from __future__ import annotations

import importlib
import json
import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest
import trl
from making import CHATML, make_pair, make_pairs, make_tokenizer, message, write_jsonl
from rich.console import Console

from dpo_recipes import Data, LoRA, Recipe, RecipeError, check, preview, train
from dpo_recipes.data import template_trial
from dpo_recipes.data.template_trial import lost_text, try_template
from dpo_recipes.errors import UsageError
from dpo_recipes.formats.rendered import FAMILIES

QUIET = Console(quiet=True)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
ASKS = "{% if add_generation_prompt %}assistant: {% endif %}"
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here') }}{% endif %}"


def template(content: str = "m['content']") -> str:
    """The tests' template with another expression in place of a message's content."""
    return CHATML.replace("m['content']", content)


def with_system(rows: list[dict]) -> list[dict]:
    for row in rows:
        row["prompt"] = [message("system", "Be brief, and never guess."), *row["prompt"]]
    return rows


def with_tools(rows: list[dict]) -> list[dict]:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    return [{**row, "tools": [tool]} for row in rows]


def in_text(change) -> list[dict]:
    """Pairs of plain text, each changed."""
    rows = []
    for row in make_pairs():
        texts = {name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")}
        rows.append(change(texts))
    return rows


@pytest.fixture
def recipe(tiny, tmp_path):
    """recipe(rows, chat_template=...) -> a recipe on a file of these rows."""

    def build(rows: list[dict] | None = None, model: Path | None = None, **data) -> Recipe:
        path = write_jsonl(tmp_path / "pairs.jsonl", rows or make_pairs())
        return Recipe(
            model=str(model or tiny()),
            data=Data(str(path), **{"eval": 0.2, **data}),
            adapter=LoRA(r=4),
            max_length=512,
        )

    return build


def refusal(recipe: Recipe, tmp_path: Path) -> str:
    """What `train` says, which leaves nothing behind."""
    with pytest.raises(RecipeError) as caught:
        train(recipe, runs=tmp_path / "runs", console=QUIET)
    assert not list((tmp_path / "runs").glob("*"))
    text = str(caught.value)
    assert "Traceback" not in text
    return text


# Templates: the rows, the template, words of the message
TEMPLATES = {
    "no end token": (None, PLAIN.replace("<|im_end|>", "") + ASKS, "{{ eos_token }}"),
    "an end behind questions alone": (
        None,
        "{% for m in messages %}{{ m.content }}{{ '<|im_end|>' if m.role == 'user' }}{% endfor %}",
        "end_token",
    ),
    "drops the question": (None, template("(m['content'] if m.role != 'user' else '')"), "what the user says: 'Quest"),
    "cuts every message": (None, template("m['content'][:20]"), "lost_text"),
    "drops the answers": (
        None,
        template("(m['content'] if m.role == 'user' else '')"),
        "change data.chat_template, which writes both sides alike",
    ),
    "writes capitals": (None, template("(m['content'] | upper)"), "lost_text"),
    "writes small letters": (None, template("(m['content'] | lower)"), "what the user says"),
    "reads another name": (None, template("(m.text | string)"), "both sides alike"),
    "escapes HTML": (
        [make_pair(f"Is {n} < {n + 1}?", f"Yes, {n} < {n + 1}.", "No.") for n in range(20)],
        template("(m['content'] | e)"),
        "what the user says: 'Is ",
    ),
    "ignores tools": (with_tools(make_pairs()), CHATML, "the tools, such as 'look_up'"),
    "passes over system messages": (
        with_system(make_pairs()),
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "data.system=merge",
    ),
    "refuses system messages": (
        with_system(make_pairs()),
        NO_SYSTEM + "{{ m.content }}<|im_end|>{% endfor %}",
        "refuses every row. Its own words: No system here",
    ),
    "an attribute of nothing": (None, "{{ nobody.name }}" + CHATML, "Its own words: 'nobody' is undefined"),
    "no such filter": (None, "{{ messages | render }}", "Its own words: No filter named 'render'"),
    "not valid Jinja": (None, "a\n{% for m in messages %}", "line 2 is not valid Jinja"),
    "an unknown tag": (None, "{% print_messages %}", "line 1 is not valid Jinja"),
    "raises for the generation prompt": (
        None,
        CHATML + "{% if add_generation_prompt %}{{ raise_exception('Not for asking') }}{% endif %}",
        "Its own words: Not for asking",
    ),
    "another generation prompt": (
        None,
        CHATML.replace("<|im_start|>assistant\\n'", "<|im_start|>bot\\n'"),
        "have a prompt whose tokens change when an answer follows",
    ),
    "two end tokens": (None, CHATML.replace("'<|im_end|>'", "'<|im_end|><|im_end|>'"), "repeated in"),
    "writes nothing": (None, "{{ '' }}", "both sides alike"),
    "calls what is no function": (None, "{{ messages() }}", "refuses every row"),
}


@pytest.mark.parametrize(("rows", "chat_template", "words"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_spoils_the_pairs_stops_a_run(recipe, tmp_path, rows, chat_template, words):
    assert words in refusal(recipe(rows, chat_template=chat_template), tmp_path)


# Values of the recipe: the fields of Data, words of the message
VALUES = {
    "a file's name": ({"chat_template": "template.jinja"}, "The name of a file is not read"),
    "a path": ({"chat_template": "./templates/chatml.jinja"}, "read_text()"),
    "words": ({"chat_template": "chatml"}, "must be Jinja"),
    "a future date": ({"template_date": str(date.today() + timedelta(days=9))}, "not in the future"),
    "false as text": ({"chat_template_kwargs": {"enable_thinking": "false"}}, "Write False."),
    "true as text": ({"chat_template_kwargs": {"enable_thinking": "True"}}, "Write True."),
    "messages as a switch": ({"chat_template_kwargs": {"messages": []}}, "'messages', which is no switch"),
    "the generation prompt as a switch": ({"chat_template_kwargs": {"add_generation_prompt": True}}, "no switch"),
    "tokenize as a switch": ({"chat_template_kwargs": {"tokenize": True}}, "'tokenize'"),
    "another word for system": ({"system": "drop"}, "one of keep, merge"),
}


@pytest.mark.parametrize(("fields", "words"), VALUES.values(), ids=VALUES)
def test_a_value_that_no_template_can_take_is_a_usage_error(fields, words):
    with pytest.raises(UsageError) as caught:
        Data("pairs.jsonl", **fields)
    assert words in str(caught.value)


def test_values_that_look_alike_are_taken():
    Data("d", template_date=str(date.today()), chat_template_kwargs={"reasoning_effort": "none", "mood": "falsetto"})
    Data("d", chat_template="{{ messages[0].content }}", system="merge")


@pytest.mark.parametrize("switches", [{"enable_thinking": "false"}, {"messages": []}], ids=["text", "reserved"])
def test_switches_of_a_row_are_held_to_the_same(recipe, tmp_path, switches):
    rows = [{**row, "chat_template_kwargs": switches} for row in make_pairs()]
    assert "malformed: chat_template_kwargs holds" in refusal(recipe(rows), tmp_path)


# Text that a template has rendered before

RENDERED_ROWS = {
    family.name: in_text(
        lambda texts, family=family: {**texts, "prompt": family.example[0].replace("Hi", texts["prompt"])}
    )
    for family in FAMILIES
    if family.name != "a transcript"  # the form hh_rlhf reads it as the conversation that it is
}


@pytest.mark.parametrize("family", RENDERED_ROWS)
def test_prompts_that_a_family_has_rendered_stop_a_run(recipe, tmp_path, family):
    text = refusal(recipe(RENDERED_ROWS[family]), tmp_path)
    assert f"prompt was rendered before, by {family}" in text and "data.format=text keeps them" in text


ANSWERS = {
    "an end token": lambda texts: {**texts, "chosen": texts["chosen"] + "</s>"},
    "another end token": lambda texts: {**texts, "rejected": texts["rejected"] + "<|eot_id|>\n"},
    "a header": lambda texts: {**texts, "chosen": "ASSISTANT: " + texts["chosen"]},
}


@pytest.mark.parametrize("change", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("form", [None, "preference"])
def test_answers_that_were_rendered_stop_a_run_whoever_named_the_form(recipe, tmp_path, change, form):
    text = refusal(recipe(in_text(change), format=form), tmp_path)
    assert "was rendered before" in text and "data.allow=['special_tokens']" in text


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
def test_text_keeps_rendered_prompts_and_questions_about_templates_pass(recipe):
    kept = check(recipe(RENDERED_ROWS["Vicuna"], format="text"), console=QUIET)
    assert not [finding for finding in kept["findings"] if finding.level == "fail" and finding.name != "versions"]

    asked = [
        make_pair(f"What is <start_of_turn>user in text {n}?", "A mark, `</s>` too.", "No idea.") for n in range(20)
    ]
    found = check(recipe(asked), console=QUIET)
    assert "fail" not in {finding.level for finding in found["findings"] if finding.name == "pairs"}


# One row among many, and the way out


@pytest.mark.usefixtures("made_up_plan")
@pytest.mark.slow
def test_one_row_that_the_template_refuses_is_dropped_and_named(recipe):
    rows = make_pairs(40)
    with_system(rows[7:8])
    refusing = NO_SYSTEM + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    refusing += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    found = check(recipe(rows, chat_template=refusing), console=QUIET)
    drops = {**found["data"]["train"]["dropped"], **found["data"]["eval"]["dropped"]}
    assert drops["the chat template refuses it: No system here"] == {"count": 1, "rows": ["7"]}
    names = {finding.name: finding for finding in found["findings"]}
    assert "a system message it refuses" in names["rendering"].text

    merged = check(recipe(rows, chat_template=refusing, system="merge"), console=QUIET)
    assert not merged["data"]["train"]["dropped"] and not merged["data"]["eval"]["dropped"]
    assert "put before the first question" in {f.name: f.text for f in merged["findings"]}["system"]


def test_a_merged_system_message_stands_in_the_prompt(recipe):
    refusing = NO_SYSTEM + "{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}" + ASKS
    seen = preview(recipe(with_system(make_pairs()), chat_template=refusing, system="merge"), console=QUIET)
    assert seen["pairs"][0]["prompt"].startswith("user: Be brief, and never guess.\n\nQuestion ")
    assert not [finding for finding in seen["findings"] if finding.level == "fail"]


@pytest.mark.usefixtures("made_up_plan")
def test_merging_where_the_template_has_the_role_is_said_to_change_nothing(recipe):
    found = check(recipe(with_system(make_pairs()), system="merge"), console=QUIET)
    [said] = [finding for finding in found["findings"] if finding.name == "system"]
    assert said.level == "warn" and "changes nothing" in said.text


def test_preview_shows_what_check_would_fail_on(recipe):
    seen = preview(recipe(chat_template=template("(m['content'] | upper)")), console=QUIET)
    assert "train lost_text" in [finding.name for finding in seen["findings"] if finding.level == "fail"]
    assert "rendering" in [finding.name for finding in seen["findings"]] and seen["pairs"]


def test_the_command_line_exits_1_where_preview_shows_a_fail(recipe, tmp_path, monkeypatch, capsys):
    cli = importlib.import_module("dpo_recipes.cli")
    monkeypatch.chdir(tmp_path)
    value = recipe()
    (tmp_path / "mine.py").write_text(
        f"from dpo_recipes import Data, LoRA, Recipe\n\nrecipe = Recipe(model={value.model!r}, "
        f"data=Data('pairs.jsonl', eval=0.2, chat_template={PLAIN.replace('<|im_end|>', '')!r}), adapter=LoRA(r=4))\n"
    )
    monkeypatch.setattr("sys.argv", ["dpo-recipes", "preview", "mine.py", "-n", "1", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1 and "train end_token" in [finding["name"] for finding in shown["findings"]]


# The tokenizer's own templates


def test_several_templates_and_none_called_default(tiny, recipe, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny(), folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(CHATML)
    assert "rag, and none that is called default" in refusal(recipe(model=folder), tmp_path)


def test_a_date_that_cannot_be_pinned(recipe, tmp_path):
    dated = "{% set form = '%d %B' %}{{ strftime_now(form) }}" + CHATML
    text = refusal(recipe(chat_template=dated, template_date="2025-07-08"), tmp_path)
    assert "template_date=2025-07-08 cannot be set" in text


def test_a_template_that_does_not_come_to_an_end(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(template_trial, "TIME_LIMIT", 0.3)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + CHATML
    assert "does not come to an end" in refusal(recipe(chat_template=endless), tmp_path)


# No false alarm: the templates that TRL ships, each of a real model

SHIPPED = {path.stem: path for path in (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")}
ANSWERED = "In the hills."
# They read content in blocks, for images: text alone is lost in them, which is an alarm indeed.
OF_IMAGES = {"idefics3", "idefics3_training", "llava_next", "llava_next_training", "smolvlm", "smolvlm_training"}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_templates_of_real_models_lose_no_text(name):
    tokenizer = make_tokenizer(SHIPPED[name].read_text(encoding="utf-8"))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    turns = [message("user", "Where does it rise?"), message("assistant", "<think>\nHm.\n</think>\n\nIn the hills.")]
    row = {
        "prompt": [*turns, message("user", "How far is it\nto the sea? ")],
        "chosen": [message("assistant", "About 116 km,  I think.\n")],
        "rejected": [message("assistant", "```\nfar\n```")],
    }

    def rendered(messages, **options):
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    if name in OF_IMAGES:
        assert try_template(tokenizer, {}).refusal or ANSWERED not in rendered(turns)
        return
    prompt = rendered(row["prompt"], add_generation_prompt=True)
    sides = [rendered(row["prompt"] + row[side]) for side in ("chosen", "rejected")]
    assert lost_text(row, [prompt, *sides]) == ""
    trial = try_template(tokenizer, {})
    assert trial.refusal == "" and trial.system == ("refuses" if name in ("gemma", "gemma_training") else "keeps")
