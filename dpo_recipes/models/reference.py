"""Who the trained policy is compared with.

Leans on TRL 1.16: `DPOTrainer` names the adapter that trains `default`, and the frozen copy of a continued one `ref`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..recipe.resolve import Settings


class Reference:
    """The frozen model a trained policy is compared with, on demand: never a second model while training."""

    def __init__(self, policy: Any, settings: Settings, load: Callable[[], Any]):
        self.policy = policy
        self.kind = settings.reference
        self._load = load
        self._loaded: Any = None  # weights of its own, once they have been asked for

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
            yield self._own_weights()

    def _own_weights(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load().to(self.policy.device).eval()
        return self._loaded
