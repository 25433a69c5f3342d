"""The judge's client against a stub on this machine: both orders, ties, retries, cost, and a key that stays secret."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from asking_models import ASKED, pairs_with_prompts_of, with_held_out_prompts
from making import perturb, recipe_for
from rich.console import Console
from serving import KEY, Stub, served

from dpo_recipes import JudgeEndpoint, RecipeError
from dpo_recipes.errors import UsageError
from dpo_recipes.evaluation.answers import answers
from dpo_recipes.evaluation.judge_endpoint import Judge, judge_answers
from dpo_recipes.evaluation.rehearsal import rehearsed

pytestmark = pytest.mark.usefixtures("waits")


class JudgeStub(Stub):
    """An endpoint that prefers the longer answer."""

    def __init__(self) -> None:
        super().__init__()
        self.says = self.longer

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        assert path == "/v1/chat/completions"
        usage = {"prompt_tokens": 100, "completion_tokens": 2}
        return {"choices": [{"message": {"content": self.says(body)}}], "usage": usage}

    @staticmethod
    def longer(body: dict[str, Any]) -> str:
        text = body["messages"][1]["content"]
        first = text.partition("[Answer A]\n")[2].partition("\n\n[Answer B]")[0]
        second = text.partition("[Answer B]\n")[2].partition("\n\nWhich")[0]
        if len(first) == len(second):
            return "C"
        return "A" if len(first) > len(second) else "B"


@pytest.fixture
def stub() -> Iterator[JudgeStub]:
    with served(JudgeStub()) as stub:
        yield stub


def judge_of(stub: JudgeStub, **values: Any) -> JudgeEndpoint:
    return JudgeEndpoint(stub.url, model="judge-1", **values)


def judged(stub: JudgeStub, reference: list[str], policy: list[str], **values: Any):
    prompts = [f"Question {number}" for number in range(len(policy))]
    return judge_answers(judge_of(stub, **values), prompts, reference, policy, Console(quiet=True))


def test_a_win_needs_both_orders_and_equal_answers_are_not_asked_about(stub):
    result = judged(stub, ["short", "much longer", "same", "abc"], ["long answer", "tiny", "same", "xyz"])
    assert result.wins == [1.0, 0.0, 0.5, 0.5] and result.contradictions == 0
    assert len(stub.asked) == 6 and result.bill.requests == 6
    assert (result.bill.prompt_tokens, result.bill.completion_tokens) == (600, 12)
    assert {body["model"] for body in stub.asked} == {"judge-1"} and all(b["temperature"] == 0 for b in stub.asked)
    assert not any("Authorization" in headers for headers in stub.headers)


def test_a_judge_that_always_likes_the_first_place_says_nothing(stub):
    stub.says = lambda body: "A"
    result = judged(stub, ["a", "b"], ["c", "d"])
    assert result.wins == [0.5, 0.5] and result.contradictions == 2


@pytest.mark.parametrize(
    ("said", "letter"),
    [("B", "B"), ("**A**", "A"), ("Both have merit. A is shorter, yet B is right.\n\nB", "B"), ("C.", "C"), ("", None)],
)
def test_the_verdict_is_the_last_letter_that_stands_alone(stub, said, letter):
    stub.says = lambda body: said
    assert Judge(judge_of(stub)).verdict("p", "one", "two") == letter


def test_a_judge_that_gives_no_verdict_is_no_judge(stub):
    stub.says = lambda body: "I would rather not say."
    with pytest.raises(RecipeError, match="none of the letters A, B and C in 4 of 4 cases"):
        judged(stub, ["a", "b"], ["c", "d"])


def test_a_busy_endpoint_is_asked_again_and_waits_as_long_as_it_says(stub, waits):
    stub.failures = [(500, {}), (429, {"Retry-After": "7"}), (503, {})]
    assert Judge(judge_of(stub)).verdict("p", "longest", "two") == "A"
    assert waits == [1.0, 7.0, 14.0] and len(stub.asked) == 4


def test_one_that_never_answers_is_one_message(stub, waits):
    stub.failures = [(500, {})] * 9
    with pytest.raises(RecipeError, match=r"does not answer after 5 tries: HTTP 500 Internal Server Error\."):
        Judge(judge_of(stub)).verdict("p", "a", "b")
    assert waits == [1.0, 2.0, 4.0, 8.0]
    with pytest.raises(RecipeError, match="after 5 tries: .*refused"):
        Judge(JudgeEndpoint("http://127.0.0.1:9/v1", model="m")).verdict("p", "a", "b")


def test_the_key_comes_from_the_environment_and_is_told_to_nobody_else(stub, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge = judge_of(stub, api_key_env="JUDGE_KEY")
    assert KEY not in repr(judge)
    Judge(judge).verdict("p", "a", "b")
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"

    stub.failures = [(401, {})]  # which repeats the key
    with pytest.raises(RecipeError, match="refuses: HTTP 401 .*Is the key in JUDGE_KEY right") as refused:
        Judge(judge).verdict("p", "a", "b")
    assert KEY not in str(refused.value)

    other = JudgeStub()
    stub.failures = [(307, {"Location": other.url})]
    with pytest.raises(RecipeError, match="refuses: HTTP 307"):
        Judge(judge).verdict("p", "a", "b")
    other.server.server_close()

    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(RecipeError, match="environment variable JUDGE_KEY, which is not set"):
        Judge(judge)


@pytest.mark.parametrize(
    ("url", "values", "words"),
    [
        ("file:///etc/passwd", {}, "must be the address of an OpenAI-compatible endpoint"),
        ("host/v1", {}, "must be the address"),
        ("https://host/v1?key=1", {}, "must be the address"),
        ("http://host/v1", {"api_key_env": "K"}, "would carry the key unencrypted"),
        ("https://me:secret@host/v1", {}, "holds a name or a password"),
    ],
)
def test_an_address_that_is_none_or_would_give_the_key_away_is_refused(url, values, words):
    with pytest.raises(UsageError, match=words):
        JudgeEndpoint(url, model="m", **values)


def test_before_training_a_judge_is_asked_once(stub):
    [finding] = rehearsed(recipe_for("unused", reward=judge_of(stub)), pairs_with_prompts_of(5, 5), None)
    assert finding.level == "pass" and len(stub.asked) == 1
    assert (
        "gave a verdict of a held-out pair; it counted 102 tokens for one, and is asked up to 4 times" in finding.text
    )
    stub.failures = [(404, {})]
    [finding] = rehearsed(recipe_for("unused", reward=judge_of(stub)), pairs_with_prompts_of(5), None)
    assert finding.level == "fail" and "HTTP 404" in finding.text and "/chat/completions" in finding.text


def test_answers_of_both_models_are_judged_and_the_cost_is_said(stub, trainer_with_reference):
    trainer, reference, _ = trainer_with_reference("adapter off")
    with_held_out_prompts(trainer, ASKED)
    perturb(trainer.model, size=2.0)
    said = io.StringIO()
    console = Console(file=said, width=200)
    recipe = recipe_for("unused", max_length=16, reward=judge_of(stub))
    samples, (before, after) = answers(recipe, trainer, reference, 2048, console)

    expected = []
    for row in samples:
        longer = len(row["policy"]) - len(row["reference"])
        expected.append(0.5 + 0.5 * ((longer > 0) - (longer < 0)))
    assert [row["win_rate"] for row in samples] == expected
    assert before["win_rate"] == 0.5 and after["win_rate"] == sum(expected) / 3 and "reward" not in after
    assert after["win_rate_interval"][0] <= after["win_rate"] <= after["win_rate_interval"][1]
    requests = after["judge"]["requests"]
    assert requests == len(stub.asked) > 0 and after["judge"]["prompt_tokens"] == 100 * requests
    assert f"judge-1 was asked {requests} times: {100 * requests} tokens read" in said.getvalue()
