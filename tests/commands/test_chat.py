"""`chat`: both sides of a run answer as the models they are, while they write and when they are done."""

from __future__ import annotations

import io

import pytest
from making import load_policy, quiet
from rich.console import Console

from dpo_recipes import RecipeError, Run, chat
from dpo_recipes.models.generate import generate
from dpo_recipes.side_by_side import SideBySide, prompts


@pytest.fixture
def run(finished) -> Run:
    return finished().run


def greedy(model, tokenizer, text: str) -> str:
    [[reply]] = generate(model, tokenizer, [[{"role": "user", "content": text}]], temperature=0, max_new_tokens=24)
    return reply.text


@pytest.mark.slow
def test_both_sides_answer_as_they_are_and_are_shown_while_they_write(run, tiny):
    grown: dict[str, list[str]] = {"reference": [], "policy": []}
    done = []
    settings = {"temperature": 0.0, "max_new_tokens": 24}
    [first, second] = chat(
        run.path,
        ["Where is the lamp?", "Why?"],
        shown=lambda side, text: grown[side].append(text),
        answered=done.append,
        **settings,
    )
    policy, tokenizer = run.load_model()
    base = load_policy(tiny())
    for answer in (first, second):
        assert answer["reference"] == greedy(base, tokenizer, answer["prompt"])
        assert answer["policy"] == greedy(policy, tokenizer, answer["prompt"])
    assert first["reference"] != first["policy"] and done == [first, second]
    for side in grown:
        assert grown[side][-1] == second[side]
        assert all(second[side].startswith(text) or first[side].startswith(text) for text in grown[side])


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["None", "continued"])
def test_the_reference_is_that_of_the_run(finished, tiny, adapter):
    run = finished(adapter).run
    [answer] = chat(run, ["Where is the lamp?"], temperature=0.0, max_new_tokens=24)
    reference = load_policy(tiny()) if adapter == "None" else finished().run.load_model()[0]
    policy, tokenizer = run.load_model()
    assert answer["reference"] == greedy(reference, tokenizer, "Where is the lamp?")
    assert answer["policy"] == greedy(policy, tokenizer, "Where is the lamp?")


def test_a_system_message_is_part_of_the_conversation(run):
    settings = {"temperature": 0.0, "max_new_tokens": 24}
    plain, systematic = (chat(run, ["Why?"], system=system, **settings) for system in (None, "Shout."))
    assert plain[0]["prompt"] == systematic[0]["prompt"] and plain != systematic


def test_a_run_without_a_model_is_refused(run, tmp_path):
    with pytest.raises(RecipeError, match="There is no run folder"):
        chat(tmp_path / "none", ["Why?"])
    with pytest.raises(RecipeError, match=r"has no recipe\.json"):
        chat(tmp_path, ["Why?"])


ANSWER = {"prompt": "Why?", "reference": "So [it] is.", "policy": "Because.\nIndeed."}


def test_in_a_pipe_each_side_is_a_line_below_its_prompt():
    console = Console(file=io.StringIO(), width=30)
    side_by_side = SideBySide(console)
    side_by_side.show("policy", "Bec")
    side_by_side.finish(ANSWER)
    side_by_side.close()
    assert console.file.getvalue() == "prompt: Why?\nreference: So [it] is.\npolicy: Because.\nIndeed.\n\n"


def test_in_a_terminal_they_stand_beside_each_other():
    console = Console(file=io.StringIO(), width=60, height=20, force_terminal=True, color_system=None)
    side_by_side = SideBySide(console)
    side_by_side.show("reference", "So")
    side_by_side.finish(ANSWER)
    last = console.file.getvalue().splitlines()[-4:]
    assert "reference" in last[0] and "policy" in last[0]
    assert "So [it] is." in last[1] and "Because." in last[1] and "Indeed." in last[2]


def test_prompts_of_a_pipe_are_its_lines_that_are_not_blank(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(" Why?\n\n  \nHow?"))
    assert list(prompts(quiet(), typed=False)) == ["Why?", "How?"]


def test_prompts_are_asked_for_until_ctrl_d(monkeypatch):
    typed = iter(["Why?", "", EOFError()])

    def give(*_: object) -> str:
        value = next(typed)
        if isinstance(value, EOFError):
            raise value
        return value

    monkeypatch.setattr("builtins.input", give)
    console = quiet()
    assert list(prompts(console, typed=True)) == ["Why?"]
    assert "Ctrl-D ends" in console.file.getvalue()
