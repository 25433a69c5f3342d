"""The client of an endpoint, against a stub on this machine: what goes wrong, and a key that stays secret."""

from __future__ import annotations

import pytest
from asking_endpoint import chat, replies_of
from serving import KEY

from dpo_recipes import Endpoint
from dpo_recipes.errors import RecipeError, UsageError
from dpo_recipes.models import endpoint

pytestmark = pytest.mark.usefixtures("waits")


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
