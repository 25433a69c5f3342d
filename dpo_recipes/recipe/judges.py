"""The models of a recipe that judge answers: a reward model, or one behind an endpoint, which may be asked for more."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Annotated

from ..errors import UsageError
from .validation import Limit, Value


def _is_web_address(url: str) -> bool:
    return re.fullmatch(r"https?://[^/\s?#]+[^\s?#]*", url) is not None


WEB_ADDRESS = Limit(_is_web_address, "the address of an OpenAI-compatible endpoint, such as https://host/v1")
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class RewardModel(Value):
    """A reward model as the recipe's `reward`: a sequence classifier with one output, a folder or a hub id."""

    path: str = field(kw_only=False)
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Endpoint(Value):
    """A model behind an OpenAI-compatible endpoint, such as one that vLLM serves."""

    url: Annotated[str, WEB_ADDRESS] = field(kw_only=False)  # up to and with /v1
    model: str  # as the endpoint names it
    api_key_env: str | None = None  # the environment variable that holds the key; None: no key is sent

    def refuse_contradictions(self) -> None:
        host = urllib.parse.urlsplit(self.url).hostname or ""
        kind = type(self).__name__
        if self.api_key_env is not None and self.url.startswith("http://") and host not in LOCAL_HOSTS:
            raise UsageError(f"{kind}.url={self.url!r} would carry the key unencrypted: write https://.")
        if urllib.parse.urlsplit(self.url).username is not None:
            raise UsageError(f"{kind}.url holds a name or a password: api_key_env names where the key is.")


@dataclass(frozen=True, kw_only=True)
class JudgeEndpoint(Endpoint):
    """A model behind an OpenAI-compatible endpoint as the recipe's `reward`: it compares answers two by two.

    The held-out prompts that are asked, and both models' answers to them, are sent there.
    """

    criterion: str = "Prefer the answer that helps the person who asks more, and that is correct."
