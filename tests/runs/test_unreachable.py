"""Which errors say that the hub did not answer, or not to the end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dpo_recipes.runs.unreachable import unreachable_reason


class TransportError(Exception):
    """As the hub's client names its own."""


class ReadTimeout(TransportError):
    """One of them."""


class StatusError(Exception):
    """An answer that is a refusal."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} of the server")
        self.response = SimpleNamespace(status_code=status)


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """The hub is asked, which other tests do not do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ReadTimeout("timed out"), "broke (timed out)"),
        (ReadTimeout(), "broke (ReadTimeout)"),
        (ConnectionResetError("reset by peer.\nmore"), "broke (reset by peer)"),
        (StatusError(503), "answers with HTTP status 503"),
        (StatusError(429), "answers with HTTP status 429"),
    ],
)
def test_a_hub_that_does_not_answer_is_told(error, words):
    assert words in str(unreachable_reason(error))


def test_the_first_cause_is_looked_for():
    try:
        try:
            raise StatusError(502)
        except StatusError as error:
            raise OSError("We couldn't connect") from error
    except OSError as error:
        assert "502" in str(unreachable_reason(error))


@pytest.mark.parametrize("error", [ValueError("x"), OSError(28, "No space left"), StatusError(403), StatusError(404)])
def test_other_errors_are_not_taken_for_it(error):
    assert unreachable_reason(error) is None


def test_a_copy_that_is_not_whole_is_told_while_the_hub_is_not_asked(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    absent = OSError("org/tiny does not appear to have a file named model.safetensors.")
    assert "its copy in the cache of the hub is not whole" in str(unreachable_reason(absent))
    assert unreachable_reason(ConnectionResetError("reset")) is None  # of some other server
