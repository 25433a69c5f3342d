"""Replies sampled behind an endpoint, against a stub on this machine: what is asked, and what goes wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from making import recipe_for, write_jsonl
from rich.console import Console
from serving import KEY, Stub, served

from dpo_recipes import Data, Endpoint, LoRA
from dpo_recipes.commands.pairs import pairs
from dpo_recipes.commands.rounds import rounds
from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.models import endpoint
from dpo_recipes.models.endpoint import Client, sampled

pytestmark = pytest.mark.usefixtures("waits")


class Sampler(Stub):
    """It replies with the number of the reply behind the prompt; at most `most` replies at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 99
        self.finish = "stop"
        self.count = 0

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        choices = []
        for _ in range(min(body["n"], self.most)):
            self.count += 1
            if path == "/v1/completions":
                choices.append({"text": f" {body['prompt']} {self.count}", "finish_reason": self.finish})
            else:
                said = f"{body['messages'][-1]['content']} {'aeiou' * (self.count % 7)} {self.count}"
                choices.append({"message": {"content": said}, "finish_reason": self.finish})
        return {"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 5 * len(choices)}}


@pytest.fixture
def stub() -> Iterator[Sampler]:
    with served(Sampler()) as stub:
        yield stub


def replies_of(stub: Stub, prompts: list, samples: int = 3, **changes: Any) -> tuple[list, Client, list]:
    client = Client(Endpoint(stub.url, model="served", **changes.pop("endpoint", {})), "endpoint")
    told: list = []
    settings = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 40, "chat_template_kwargs": {}, "seed": 5}
    replies = sampled(client, prompts, samples=samples, progress=lambda *done: told.append(done), **settings | changes)
    return replies, client, told


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


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


def test_a_page_in_place_of_json_and_an_address_where_nothing_listens(stub, monkeypatch, waits):
    monkeypatch.setattr(stub, "answer", lambda path, body: b"<html>It works!</html>")
    with pytest.raises(RecipeError, match="does not answer after 5 tries: its answer is no JSON: '<html>It works"):
        replies_of(stub, [chat("Why?")])
    assert waits == [1.0, 2.0, 4.0, 8.0]
    stub.url = "http://127.0.0.1:9/v1"
    with pytest.raises(RecipeError, match="after 5 tries: .*refused"):
        replies_of(stub, [chat("Why?")])


def test_one_that_is_too_slow_is_asked_again_and_then_given_up(stub, monkeypatch):
    import time

    monkeypatch.setattr(endpoint, "TIMEOUT", 0.05)
    monkeypatch.setattr(endpoint, "TRIES", 2)
    monkeypatch.setattr(stub, "answer", lambda path, body: time.sleep(0.3))
    with pytest.raises(RecipeError, match="does not answer after 2 tries: .*timed out"):
        replies_of(stub, [chat("Why?")])


def test_of_a_model_that_is_not_served_those_that_are_are_named(stub):
    stub.failures = [(404, {})]
    stub.models = ["serve", "other"]
    with pytest.raises(RecipeError, match=r"HTTP 404 .* Models that it serves: serve, other. Did you mean 'serve'\?"):
        replies_of(stub, [chat("Why?")])
    stub.failures, stub.models = [(404, {})], None
    with pytest.raises(RecipeError, match="The address ends before /chat/completions"):
        replies_of(stub, [chat("Why?")])


def test_the_key_is_sent_and_told_to_nobody(stub, monkeypatch):
    monkeypatch.setenv("SAMPLE_KEY", KEY)
    named = {"api_key_env": "SAMPLE_KEY"}
    replies_of(stub, [chat("Why?")], endpoint=named)
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    stub.failures = [(401, {})]  # which repeats the key
    with pytest.raises(RecipeError, match="refuses: HTTP 401 .*Is the key in SAMPLE_KEY right") as refused:
        replies_of(stub, [chat("Why?")], endpoint=named)
    assert KEY not in str(refused.value)
    with pytest.raises(UsageError, match="Endpoint.url='http://far/v1' would carry the key unencrypted"):
        Endpoint("http://far/v1", model="m", **named)


def test_one_failure_ends_all(stub):
    stub.failures = [(400, {})] * 100
    with pytest.raises(RecipeError, match="HTTP 400"):
        replies_of(stub, [chat(f"{number}") for number in range(90)])
    assert len(stub.asked) < 60


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
