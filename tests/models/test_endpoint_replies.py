"""Replies sampled behind an endpoint, against a stub on this machine: what is asked, and what is made of it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from asking_endpoint import chat, replies_of
from making import recipe_for, write_jsonl
from rich.console import Console

from dpo_recipes import Data, Endpoint, LoRA
from dpo_recipes.commands.pairs import pairs
from dpo_recipes.commands.rounds import rounds
from dpo_recipes.errors import RecipeError, UsageError

pytestmark = pytest.mark.usefixtures("waits")


def test_each_prompt_gets_its_replies_in_one_request_that_names_all_settings(stub):
    replies, client, told = replies_of(stub, [chat("Why?"), chat("How?")])
    assert [[reply.text.partition(" ")[0] for reply in each] for each in replies] == [["Why?"] * 3, ["How?"] * 3]
    assert all(reply.ended and reply.token_ids == [] for each in replies for reply in each)
    assert set(stub.paths) == {"/v1/chat/completions"} and len(stub.asked) == 2
    bodies = sorted(stub.asked, key=lambda body: body["messages"][0]["content"], reverse=True)
    for body in bodies:
        assert {name: body[name] for name in ("model", "n", "temperature", "top_p", "max_tokens")} == {
            "model": "served",
            "n": 3,
            "temperature": 0.7,
            "top_p": 1.0,
            "max_tokens": 40,
        }
        assert "chat_template_kwargs" not in body
    assert bodies[0]["seed"] != bodies[1]["seed"]
    assert (client.bill.requests, client.bill.prompt_tokens, client.bill.completion_tokens) == (2, 20, 30)
    assert told == [(3, 6), (6, 6)]


def test_text_is_continued_and_switches_of_the_template_are_sent_with_messages(stub):
    [[reply]], *_ = replies_of(stub, ["Once upon"], samples=1, chat_template_kwargs={"enable_thinking": False})
    assert reply.text == " Once upon 1" and stub.paths == ["/v1/completions"]
    assert "chat_template_kwargs" not in stub.asked[0]
    replies_of(stub, [chat("Why?")], samples=1, chat_template_kwargs={"enable_thinking": False})
    assert stub.asked[1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_fewer_replies_than_asked_for_are_asked_for_again_with_other_seeds(stub):
    stub.most = 2
    [replies], *_ = replies_of(stub, [chat("Why?")], samples=5)
    assert len(replies) == 5 and [body["n"] for body in stub.asked] == [5, 3, 1]
    assert len({body["seed"] for body in stub.asked}) == 3
    stub.most = 0
    with pytest.raises(RecipeError, match="was asked for 3 replies to a prompt and gave none. It answered: {"):
        replies_of(stub, [chat("Why?")])


def test_more_replies_than_asked_for_are_not_taken(stub, monkeypatch):
    usual = stub.answer
    monkeypatch.setattr(stub, "answer", lambda path, body: usual(path, body | {"n": 9}))
    [replies], *_ = replies_of(stub, [chat("Why?")])
    assert len(replies) == 3


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_what_was_cut_off_or_filtered_has_not_ended(stub, finish):
    stub.finish = finish
    [replies], *_ = replies_of(stub, [chat("Why?")])
    assert not any(reply.ended for reply in replies)


@pytest.mark.parametrize(
    "answer",
    [
        {"object": "error"},
        {"choices": "none"},
        {"choices": [{"message": {"content": "a"}}]},
        {"choices": [{"message": {"content": ["a"]}, "finish_reason": "stop"}]},
        {"choices": [{"finish_reason": "stop"}]},
        {"choices": [7]},
    ],
)
def test_what_is_not_the_protocol_is_one_message(stub, monkeypatch, answer):
    monkeypatch.setattr(stub, "answer", lambda path, body: answer)
    with pytest.raises(
        RecipeError, match=r"The endpoint at http://127.* does not answer as the OpenAI protocol has it"
    ):
        replies_of(stub, [chat("Why?")])


# --------------------------------------------------------------------------------------------- pairs of such replies


def vowels(prompt: str, completion: str) -> float:
    return float(sum(letter in "aeiou" for letter in completion))


@pytest.fixture
def sampling(tiny, tmp_path, stub) -> dict[str, Any]:
    """A recipe, and the arguments of `pairs`."""
    recipe = recipe_for(tiny(), adapter=LoRA(r=4), reward=vowels, max_length=512, data=Data("unused", eval=0.1), seed=3)
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Question {number}"} for number in range(100)])
    return {"recipe": recipe, "prompts": prompts, "to": tmp_path / "own", "endpoint": Endpoint(stub.url, model="big")}


@pytest.mark.slow
def test_pairs_are_made_of_them_and_the_cost_is_said(sampling, stub):
    said = io.StringIO()
    report = pairs(**sampling, console=Console(file=said, width=200))
    to = sampling["to"]
    assert len(stub.asked) == 100 and report["replies"] == 400 and report["pairs"] > 100
    cost = {"url": stub.url, "model": "big", "requests": 100, "prompt_tokens": 1000, "completion_tokens": 2000}
    assert report["endpoint"] == cost == json.loads((to / "endpoint.json").read_text())
    row = json.loads((to / "train.jsonl").read_text().split("\n")[0])
    assert vowels("", row["chosen"][0]["content"]) > vowels("", row["rejected"][0]["content"])
    assert f"Replies are sampled from big at {stub.url}: the prompts are sent there." in said.getvalue()
    assert "The endpoint was asked 100 times: 1,000 tokens read and 2,000 written." in said.getvalue()


@pytest.mark.slow
def test_what_was_stopped_goes_on_where_it_was_and_the_cost_is_of_both(sampling, stub, monkeypatch):
    usual, number = stub.answer, iter(range(1000))
    monkeypatch.setattr(stub, "answer", lambda path, body: usual(path, body) if next(number) < 80 else {})
    with pytest.raises(RecipeError, match="does not answer as the OpenAI protocol") as stopped:
        pairs(**sampling)
    assert stopped.value.__notes__ == [f"{sampling['to']} holds what was sampled; the same command goes on from there."]
    assert len(list((sampling["to"] / "replies").iterdir())) == 1  # of 64 prompts

    monkeypatch.setattr(stub, "answer", usual)
    before = len(stub.asked)
    report = pairs(**sampling)
    assert len(stub.asked) == before + 36 and report["prompts"] == 100
    assert report["endpoint"]["requests"] == len(stub.asked)
    assert pairs(**sampling)["endpoint"] == report["endpoint"] and len(stub.asked) == before + 36


@pytest.mark.slow
def test_replies_of_another_model_are_not_mixed_in_and_rounds_need_one_that_learns(sampling):
    pairs(**sampling)
    other = {**sampling, "endpoint": Endpoint(sampling["endpoint"].url, model="small")}
    with pytest.raises(UsageError, match=r"another model \(was big\)"):
        pairs(**other)
    with pytest.raises(UsageError, match="--endpoint serves one model all the time"):
        rounds(sampling.pop("recipe"), count=2, **sampling)
