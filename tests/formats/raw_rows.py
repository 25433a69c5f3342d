"""What rows of many forms are written with, and the pair that is read of them."""

from __future__ import annotations

from making import said, user


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def block(text):
    return {"type": "text", "text": text}


def pair(prompt, chosen="Yes.", rejected="No.", **own):
    """The pair of a prompt's messages and two replies, with what is passed on beside it."""
    sides = {"chosen": [said(chosen)], "rejected": [said(rejected)]}
    return {"prompt": prompt, **sides, **BESIDE, **own}


BESIDE = {"weight": 1.0, "turns": 1, "differs_earlier": False, "tools": None, "chat_template_kwargs": {}}
TALK = [user("Hi"), said("Hello"), user("Ok?")]
SIDES = {"chosen": "Yes.", "rejected": "No."}
WHOLE = {"chosen": [user("Ok?"), said("Yes.")], "rejected": [user("Ok?"), said("No.")]}
LONG = {"chosen": [*TALK, said("Yes.")], "rejected": [*TALK, said("No.")]}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
INFO = {
    "id": "t3_1",
    "post": "I met.\n\nThen left.",
    "title": "A title",
    "subreddit": "tifu",
    "site": None,
    "article": None,
}
NEWS = {
    "id": "c1",
    "post": None,
    "title": "A title",
    "subreddit": None,
    "site": "cnn",
    "article": "It rains.\n\nA lot.",
}
TWO = [{"text": " One.", "policy": "sup4", "note": None}, {"text": " Two.", "policy": "ref", "note": None}]
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Ok?\n\nAssistant:"
# What a file may have in a column that a row does not use. Arrow stores an empty dict as one of None.
EMPTY = (None, "", " \n", "\u200b", [], {}, {"from": None, "value": None})
