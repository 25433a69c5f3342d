"""Models behind an OpenAI-compatible endpoint: one small client for all that asks them.

Nothing is sent but what is asked, and only to the address that the recipe or the command names.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, TypeVar

from ..errors import RecipeError, nearest
from ..recipe.judges import Endpoint

TIMEOUT = 300.0  # seconds, of one request
TRIES = 5  # of one request
FIRST_WAIT = 1.0  # seconds before the second try; twice as long before each later one
LONGEST_WAIT = 60.0
SHOWN = 200  # characters of an answer that a message shows

Answer = TypeVar("Answer")


@dataclass
class Bill:
    """What has been asked, as the endpoint counts it."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, usage: Any) -> None:
        counts = usage if isinstance(usage, dict) else {}
        with self._lock:
            self.requests += 1
            self.prompt_tokens += int(counts.get("prompt_tokens") or 0)
            self.completion_tokens += int(counts.get("completion_tokens") or 0)

    def in_words(self) -> str:
        tokens = f"{self.prompt_tokens:,} tokens read and {self.completion_tokens:,} written"
        return f"was asked {self.requests:,} times: {tokens}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: followed, it would carry the key to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """Asks the model of an endpoint, again where it is busy."""

    def __init__(self, endpoint: Endpoint, who: str):
        """`who` answers, in messages: "judge". RecipeError where the environment does not have the key."""
        self.endpoint = endpoint
        self.who = who
        self.bill = Bill()
        self._stopped = Event()
        self._opener = urllib.request.build_opener(_NoRedirect())
        self._key = None
        if endpoint.api_key_env is not None:
            self._key = os.environ.get(endpoint.api_key_env)
            if not self._key:
                raise RecipeError(
                    f"The {who}'s key is to be in the environment variable {endpoint.api_key_env}, which is not set. "
                    "Set it where this runs; it is written nowhere."
                )

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer to a request about the model; `path` is such as "chat/completions".

        Tried again while the endpoint is busy or cannot be reached, RecipeError where that does not help.
        """
        answer = self._post(path, {"model": self.endpoint.model, **body})
        self.bill.add(answer.get("usage"))
        return answer

    def all(self, questions: Iterable[Callable[[], Answer]], at_once: int, told: Callable[[int], None]) -> list[Answer]:
        """What each question returns, so many of them `at_once`; `told(index)` follows each, in their order.

        What goes wrong with one ends them all: nothing more is asked then.
        """
        with ThreadPoolExecutor(at_once) as pool:
            waiting = [pool.submit(question) for question in questions]
            answers: list[Answer] = []
            try:
                for index, answer in enumerate(waiting):
                    answers.append(answer.result())
                    told(index)
            except BaseException:  # Ctrl-C too
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return answers

    def unlike_the_protocol(self, answer: Any) -> RecipeError:
        """The error for an answer that is not what the OpenAI protocol has there."""
        return RecipeError(
            f"The {self.who} at {self.endpoint.url} does not answer as the OpenAI protocol has it: "
            f"{json.dumps(answer)[:SHOWN]}"
        )

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        wait = FIRST_WAIT
        for attempt in range(1, TRIES + 1):
            try:
                return self._ask_once(path, body)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 429 and error.code < 500:
                        raise self._refusal(error, path) from None
                    reason = f"HTTP {error.code} {error.reason}"
                    asked_for = _seconds(error.headers.get("Retry-After"))
                wait = max(wait, asked_for)
            except (OSError, ValueError) as error:  # no connection, a time-out; an answer that is no JSON
                reason = str(getattr(error, "reason", error))
            if attempt < TRIES:
                _pause(self._stopped, min(wait, LONGEST_WAIT))
                wait *= 2
            if self._stopped.is_set():
                break
        raise RecipeError(f"The {self.who} at {self.endpoint.url} does not answer after {attempt} tries: {reason}.")

    def _ask_once(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{self.endpoint.url.rstrip('/')}/{path}"
        data = None if body is None else json.dumps(body).encode("utf-8")
        request = urllib.request.Request(url, data, headers)
        with self._opener.open(request, timeout=TIMEOUT) as response:
            said = response.read()
        try:
            answer = json.loads(said)
        except ValueError:
            raise ValueError(f"its answer is no JSON: {said[:SHOWN].decode('utf-8', 'replace')!r}") from None
        if not isinstance(answer, dict):
            raise ValueError("its answer is no JSON object")
        return answer

    def _refusal(self, error: urllib.error.HTTPError, path: str) -> RecipeError:
        said = error.read(SHOWN).decode("utf-8", "replace").strip()
        if self._key:
            said = said.replace(self._key, "...")  # some endpoints repeat it
        text = f"The {self.who} at {self.endpoint.url} refuses: HTTP {error.code} {error.reason}. {said}"
        if error.code in (401, 403):
            text += f" Is the key in {self.endpoint.api_key_env or 'the variable that api_key_env names'} right?"
        if error.code == 404:
            text += f" {self._what_is_there(path)}"
        return RecipeError(text)

    def _what_is_there(self, path: str) -> str:
        """Why nothing may be found at an address: another model is served there, or it is no such address."""
        try:
            models = [str(entry["id"]) for entry in self._ask_once("models", None)["data"]]
        except (OSError, ValueError, LookupError, TypeError):
            return f"The address ends before /{path}, as in https://host/v1; is the model's name right?"
        model = self.endpoint.model
        return f"Models that it serves: {', '.join(models) or 'none'}.{nearest(model, models)}"


def _pause(stopped: Event, seconds: float) -> None:
    """Wait, or less where nobody waits for the answer any more."""
    stopped.wait(seconds)


def _seconds(text: str | None) -> float:
    """What a Retry-After header asks for; a date there is taken for nothing."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
