"""Who the trained policy is compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..recipe.resolve import Settings


class Reference:
    """The frozen model a trained policy is compared with, on demand: never a second model while training."""

    def __init__(self, policy: Any, settings: Settings, load: Callable[[], Any]):
        self.policy, self.kind = policy, settings.reference
        self._load = functools.cache(lambda: load().to(policy.device).eval())

    @contextmanager
    def model(self) -> Iterator[Any]:
        """The reference as a model in eval mode: the adapter off, its frozen copy, or weights loaded once more."""
        if self.kind == "adapter off":
            with self.policy.disable_adapter():
                yield self.policy
        elif self.kind == "frozen adapter":
            self.policy.set_adapter("ref")
            try:
                yield self.policy
            finally:
                self.policy.set_adapter("default")
        else:
            yield self._load()
