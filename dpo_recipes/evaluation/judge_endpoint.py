"""A model behind an OpenAI-compatible endpoint as the judge of two answers.

Nothing but the two answers and their prompt is sent, and only to the address that the recipe or the command names.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from threading import Lock

from rich.console import Console

from ..errors import RecipeError
from ..models.endpoint import Bill, Client
from ..progress import Stage
from ..recipe.judges import JudgeEndpoint

AT_ONCE = 8  # requests that wait for an answer at the same time
MAX_TOKENS = 512  # of a verdict, which is one letter, and of what a model may think before it
UNREADABLE_ABOVE = 0.1  # share of verdicts that cannot be read, above which the judge is no judge

INSTRUCTIONS = (
    "You compare two answers to the same request. {criterion} Do not let the order of the answers or their length "
    "decide. Reply with one letter and nothing else: A if answer A is better, B if answer B is better, C if neither is."
)
QUESTION = (
    "[Request]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\nWhich is better: A, B, or C for neither?"
)


class Judge:
    """Asks a judge which of two answers is better."""

    def __init__(self, judge: JudgeEndpoint):
        """RecipeError where the environment does not have the key."""
        self.criterion = judge.criterion
        self.client = Client(judge, "judge")
        self.unreadable = 0
        self._lock = Lock()

    @property
    def bill(self) -> Bill:
        """What has been asked."""
        return self.client.bill

    def verdict(self, prompt: str, first: str, second: str) -> str | None:
        """ "A" where the first answer is better, "B" where the second is, "C" where neither; None: it did not say."""
        content = QUESTION.format(prompt=prompt, first=first, second=second)
        messages = [
            {"role": "system", "content": INSTRUCTIONS.format(criterion=self.criterion)},
            {"role": "user", "content": content},
        ]
        answer = self.client.ask("chat/completions", messages=messages, temperature=0, max_tokens=MAX_TOKENS)
        try:
            text = answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            raise self.client.unlike_the_protocol(answer) from None
        letters = re.findall(r"\b[ABC]\b", text)
        if not letters:
            with self._lock:
                self.unreadable += 1
            return None
        return letters[-1]  # what a model thinks aloud comes before it


@dataclass
class Judged:
    """What a judge says of pairs of answers."""

    wins: list[float]  # of each prompt: 1 where the policy's answer is better, 0 the reference's, 1/2 neither
    contradictions: int  # prompts where each order of the answers gave another winner
    unreadable: int  # verdicts that were none
    bill: Bill


def judge_answers(
    judge: JudgeEndpoint, prompts: list[str], reference: list[str], policy: list[str], console: Console
) -> Judged:
    """Both answers to each prompt, asked about in both orders; a judge that contradicts itself says neither is better.

    Answers that are equal are not asked about. RecipeError where the endpoint does not answer, or says what cannot be
    read in more than a tenth of all cases.
    """
    asked = Judge(judge)
    different = [number for number in range(len(prompts)) if reference[number] != policy[number]]
    forth = [functools.partial(asked.verdict, prompts[n], policy[n], reference[n]) for n in different]
    back = [functools.partial(asked.verdict, prompts[n], reference[n], policy[n]) for n in different]
    with Stage(console, f"The judge {judge.model}", 2 * len(different), "verdicts") as stage:
        verdicts = asked.client.all([*forth, *back], AT_ONCE, lambda _: stage.advance())
    if asked.unreadable > UNREADABLE_ABOVE * len(verdicts):
        raise RecipeError(
            f"The judge {judge.model} answered with none of the letters A, B and C in {asked.unreadable} of "
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
    return Judged(wins, contradictions, asked.unreadable, asked.bill)
