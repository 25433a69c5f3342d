"""Which process of several tells of an error, and when."""

from __future__ import annotations

import pytest

from dpo_recipes import RecipeError, told_once
from dpo_recipes.signals import Stopped


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(told_once, "_wait", seconds.append)
    return seconds


def _raised(error: BaseException) -> type[BaseException]:
    with pytest.raises(BaseException) as raised, told_once.told_once():
        raise error
    return raised.type


def test_alone_and_in_the_main_process_an_error_with_a_reason_is_told_at_once(waited, monkeypatch):
    assert _raised(RecipeError("x")) is RecipeError and _raised(ValueError("x")) is ValueError
    assert _raised(Stopped(2, [])) is Stopped
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert _raised(RecipeError("x")) is RecipeError
    assert waited == []


def test_what_may_come_from_another_process_waits_for_that_one(waited, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert _raised(RuntimeError("connection closed")) is RuntimeError
    monkeypatch.setenv("RANK", "1")
    assert _raised(RecipeError("x")) is RecipeError
    assert waited == [told_once.WITHOUT_A_REASON, told_once.OF_ANOTHER_THAN_THE_MAIN_PROCESS]


def test_of_a_stop_the_main_process_tells_alone(waited, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert _raised(Stopped(2, [])) is SystemExit
