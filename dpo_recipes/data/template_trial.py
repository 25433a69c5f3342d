"""What a chat template does to text: tried on a conversation that is known, and looked up in every pair.

A template that passes over a message trains on something else than the data say, and nothing in the log would show it.
"""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..errors import Finding, RecipeError
from ..formats.messages import IMAGE, Message

# The conversation that a template is tried on: no template writes these words of its own.
SYSTEM = "Name the sources of rivers, and never guess."
QUESTION = "Where does the Wupper rise?"
ANSWER = "Near Meinerzhagen, 441 metres above the sea."

TIME_LIMIT = 20.0  # seconds for the trial, which takes milliseconds

# Marks within a message that a template may read and take out: of a thought, and SmolLM3's switches.
MARKS = re.compile(r"</?think>|/no_think|/think|/system_override")


class Trial(NamedTuple):
    """What became of the conversation."""

    refusal: str  # the template's words, where it refuses a question and an answer
    behind_answer: str  # what it writes behind an answer
    system: str  # what it does to a system message: "keeps", "leaves out" or "refuses"
    strips: bool  # whether it strips white space around a text

    @property
    def takes_system(self) -> bool:
        return self.system == "keeps"


def try_template(tokenizer: Any, kwargs: dict[str, Any]) -> Trial:
    """What the tokenizer's chat template does to a known conversation; RecipeError where it does not come to an end."""

    def rendered(*messages: tuple[str, str]) -> str:
        conversation = [{"role": role, "content": content} for role, content in messages]
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, **kwargs))

    with _time_limit():
        try:
            answered = rendered(("user", QUESTION), ("assistant", ANSWER))
            spaced = rendered(("user", QUESTION), ("assistant", f"  {ANSWER}"))
        except TimeoutError:
            raise
        except Exception as error:  # whatever a template raises is what it says
            return Trial(str(error) or type(error).__name__, behind_answer="", system="", strips=False)

        try:
            with_system = rendered(("system", SYSTEM), ("user", QUESTION), ("assistant", ANSWER))
            system = "keeps" if SYSTEM in with_system else "leaves out"
        except TimeoutError:
            raise
        except Exception:  # which many raise on purpose
            system = "refuses"

    strips = f"  {ANSWER}" not in spaced
    return Trial("", answered.rpartition(ANSWER)[2], system, strips)


@contextmanager
def _time_limit() -> Iterator[None]:
    """An error where the block takes longer; only the main thread of a system with alarms can tell."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT)
    try:
        yield
    except TimeoutError:
        raise RecipeError(
            f"The chat template does not come to an end: {TIME_LIMIT:g} seconds are not enough for a question and an "
            "answer. Correct the loops of data.chat_template."
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def trial_findings(trial: Trial) -> list[Finding]:
    """What should be known of a rendering. What a template refuses is said where the pairs are counted."""
    if trial.refusal:
        return []
    white_space = "strips" if trial.strips else "keeps"
    text = (
        f"Behind an answer the chat template writes {trial.behind_answer!r}; a system message it {trial.system}; white "
        f"space around a text it {white_space}."
    )
    return [Finding("pass", "rendering", text)]


# ------------------------------------------------------------------------------------------- what is lost of a pair


def lost_text(row: dict[str, Any], rendered: list[str]) -> str:
    """What the template leaves out or changes of a pair, in words; "" where nothing is.

    `rendered`: the prompt, and the prompt with each side. Outer white space may go, and so may the thoughts of earlier
    turns. A message with calls of tools is left alone, since templates write the calls in forms of their own.
    """
    _, with_chosen, with_rejected = rendered
    for side, text in (("chosen", with_chosen), ("rejected", with_rejected)):
        messages = [(message, False) for message in row["prompt"]] + [(message, True) for message in row[side]]
        for message, is_learned in messages:
            for part in _parts(message, is_learned):
                if not _stands_in(part, text, message["role"]):
                    return f"what the {message['role']} says: {part[:60]!r}"
        for name in _tool_names(row.get("tools")):
            if name not in text:
                return f"the tools, such as {name!r}"
    return ""


def _parts(message: Message, is_learned: bool) -> list[str]:
    """The parts of a message that must stand in what is rendered, each without white space around it."""
    if message.get("tool_calls"):
        return []
    content = message["content"]
    if message["role"] == "assistant" and not is_learned:  # of an earlier turn the thought may go
        content = content.rpartition("</think>")[2]
    parts = [part.strip() for text in content.split(IMAGE) for part in MARKS.split(text)]
    return [part for part in parts if part]


def _stands_in(part: str, text: str, role: str) -> bool:
    if part in text:
        return True
    # Llama 3.1 writes what a tool returns as JSON.
    return role == "tool" and json.dumps(part, ensure_ascii=False)[1:-1] in text


def _tool_names(tools: Any) -> list[str]:
    """The names of the tools of a row, which may be stored as JSON."""
    if isinstance(tools, str):
        tools = json.loads(tools)
    names = []
    for tool in tools or []:
        if isinstance(tool, dict):
            function = tool.get("function", tool)
            name = function.get("name") if isinstance(function, dict) else None
            if isinstance(name, str):
                names.append(name)
    return names
