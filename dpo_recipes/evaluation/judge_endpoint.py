"""A model behind an OpenAI-compatible endpoint as the judge of two answers: a small client of its own.

Nothing but the two answers and their prompt is sent, and only to the address that the recipe or the command names.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from rich.console import Console

from ..errors import RecipeError
from ..progress import Stage
from ..recipe.recipe import JudgeEndpoint

AT_ONCE = 8  # requests that wait for an answer at the same time
TIMEOUT = 120.0  # seconds
TRIES = 5  # of one request
FIRST_WAIT = 1.0  # seconds before the second try; twice as long before each later one
LONGEST_WAIT = 60.0
MAX_TOKENS = 512  # of a verdict, which is one letter, and of what a model may think before it
UNREADABLE_ABOVE = 0.1  # share of verdicts that cannot be read, above which the judge is no judge
SHOWN = 200  # characters of an answer that a message shows

INSTRUCTIONS = (
    "You compare two answers to the same request. {criterion} Do not let the order of the answers or their length "
    "decide. Reply with one letter and nothing else: A if answer A is better, B if answer B is better, C if neither is."
)
QUESTION = (
    "[Request]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\nWhich is better: A, B, or C for neither?"
)


@dataclass
class Bill:
    """What has been asked, as the endpoint counts it."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreadable: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, usage: dict[str, Any]) -> None:
        with self._lock:
            self.requests += 1
            self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.completion_tokens += int(usage.get("completion_tokens") or 0)

    def add_unreadable(self) -> None:
        with self._lock:
            self.unreadable += 1


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: followed, it would carry the key to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """Asks a judge which of two answers is better."""

    def __init__(self, judge: JudgeEndpoint):
        """RecipeError where the environment does not have the key."""
        self.judge = judge
        self.bill = Bill()
        self._opener = urllib.request.build_opener(_NoRedirect())
        self._key = None
        if judge.api_key_env is not None:
            self._key = os.environ.get(judge.api_key_env)
            if not self._key:
                raise RecipeError(
                    f"The judge's key is to be in the environment variable {judge.api_key_env}, which is not set. Set "
                    "it where this runs; it is written nowhere."
                )

    def verdict(self, prompt: str, first: str, second: str) -> str | None:
        """ "A" where the first answer is better, "B" where the second is, "C" where neither; None: it did not say."""
        content = QUESTION.format(prompt=prompt, first=first, second=second)
        messages = [
            {"role": "system", "content": INSTRUCTIONS.format(criterion=self.judge.criterion)},
            {"role": "user", "content": content},
        ]
        answer = self._post(
            {"model": self.judge.model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
        )
        self.bill.add(answer.get("usage") or {})
        try:
            text = answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            raise RecipeError(
                f"The judge at {self.judge.url} does not answer as the OpenAI protocol has it: "
                f"{json.dumps(answer)[:SHOWN]}"
            ) from None
        letters = re.findall(r"\b[ABC]\b", text)
        if not letters:
            self.bill.add_unreadable()
            return None
        return letters[-1]  # what a model thinks aloud comes before it

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, tried again while the endpoint is busy or cannot be reached."""
        wait = FIRST_WAIT
        for attempt in range(1, TRIES + 1):
            try:
                return self._ask_once(body)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 429 and error.code < 500:
                        raise self._refusal(error) from None
                    reason = f"HTTP {error.code} {error.reason}"
                    asked_for = _seconds(error.headers.get("Retry-After"))
                wait = max(wait, asked_for)
            except (OSError, ValueError) as error:  # no connection, a time-out; an answer that is no JSON
                reason = str(getattr(error, "reason", error))
            if attempt < TRIES:
                time.sleep(min(wait, LONGEST_WAIT))
                wait *= 2
        raise RecipeError(f"The judge at {self.judge.url} does not answer after {TRIES} tries: {reason}.")

    def _ask_once(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{self.judge.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode("utf-8"), headers)
        with self._opener.open(request, timeout=TIMEOUT) as response:
            answer = json.loads(response.read())
        if not isinstance(answer, dict):
            raise ValueError("its answer is no JSON object")
        return answer

    def _refusal(self, error: urllib.error.HTTPError) -> RecipeError:
        said = error.read(SHOWN).decode("utf-8", "replace").strip()
        if self._key:
            said = said.replace(self._key, "...")  # some endpoints repeat it
        text = f"The judge at {self.judge.url} refuses: HTTP {error.code} {error.reason}. {said}"
        if error.code in (401, 403):
            text += f" Is the key in {self.judge.api_key_env or 'the variable that api_key_env names'} right?"
        if error.code == 404:
            text += " The address ends before /chat/completions, as in https://host/v1; is the model's name right?"
        return RecipeError(text)


def _seconds(text: str | None) -> float:
    """What a Retry-After header asks for; a date there is taken for nothing."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


@dataclass
class Judged:
    """What a judge says of pairs of answers."""

    wins: list[float]  # of each prompt: 1 where the policy's answer is better, 0 the reference's, 1/2 neither
    contradictions: int  # prompts where each order of the answers gave another winner
    bill: Bill


def judge_answers(
    judge: JudgeEndpoint, prompts: list[str], reference: list[str], policy: list[str], console: Console
) -> Judged:
    """Both answers to each prompt, asked about in both orders; a judge that contradicts itself says neither is better.

    Answers that are equal are not asked about. RecipeError where the endpoint does not answer, or says what cannot be
    read in more than a tenth of all cases.
    """
    client = Client(judge)
    different = [number for number in range(len(prompts)) if reference[number] != policy[number]]
    with (
        Stage(console, f"The judge {judge.model}", 2 * len(different), "verdicts") as stage,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        forth = [pool.submit(client.verdict, prompts[n], policy[n], reference[n]) for n in different]
        back = [pool.submit(client.verdict, prompts[n], reference[n], policy[n]) for n in different]
        try:
            verdicts = []
            for verdict in (*forth, *back):
                verdicts.append(verdict.result())
                stage.advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if client.bill.unreadable > UNREADABLE_ABOVE * len(verdicts):
        raise RecipeError(
            f"The judge {judge.model} answered with none of the letters A, B and C in {client.bill.unreadable} of "
            f"{len(verdicts)} cases. Take a model that follows instructions."
        )

    wins = [0.5] * len(prompts)
    contradictions = 0
    for place, number in enumerate(different):
        first, second = verdicts[place], verdicts[place + len(different)]
        if (first, second) == ("A", "B"):
            wins[number] = 1.0
        elif (first, second) == ("B", "A"):
            wins[number] = 0.0
        elif first == second and first in ("A", "B"):  # the same place, whichever answer stood there
            contradictions += 1
    return Judged(wins, contradictions, client.bill)
