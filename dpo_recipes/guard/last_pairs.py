"""The last pairs that were trained on, as numbers of the log: smoother than those of one step's few pairs."""

from collections import deque
from typing import Any

from torch import Tensor, stack

from ..losses.pair_logps import PairLogps

WINDOW = 256  # pairs: the standard error of an accuracy is 0.03 then, and of a step with 16 pairs four times that


class LastPairs:
    """The last WINDOW pairs, and the last WINDOW of those alone whose chosen side is the longer, or the shorter."""

    def __init__(self, beta: float, *, changes_are_known: bool):
        """`changes_are_known`: the reference is the start and stays it, so that log-ratios are changes since then."""
        self.beta = beta
        self.changes_are_known = changes_are_known
        # Rows of `_rows`, the oldest first
        self._all: deque[list[float]] = deque(maxlen=WINDOW)
        self._chosen_longer: deque[float] = deque(maxlen=WINDOW)
        self._chosen_shorter: deque[float] = deque(maxlen=WINDOW)

    @staticmethod
    def rows(wins: Tensor, pairs: PairLogps) -> Tensor:
        """What is kept of each pair of a batch: shape (pairs, 5), in float32.

        `wins` is 1 for a pair that is ranked as labelled, 0.5 for a tie. Then come the log-ratios of the chosen and of
        the rejected side, nats, and their lengths, tokens.
        """
        columns = [wins, pairs.chosen_logratios, pairs.rejected_logratios, pairs.chosen_tokens, pairs.rejected_tokens]
        return stack([column.float() for column in columns], dim=1)

    def add(self, rows: Tensor) -> None:
        """Take in the rows of a batch, of all processes."""
        for row in rows.tolist():
            win, _, _, chosen_tokens, rejected_tokens = row
            self._all.append(row)
            if chosen_tokens > rejected_tokens:
                self._chosen_longer.append(win)
            elif chosen_tokens < rejected_tokens:
                self._chosen_shorter.append(win)

    def kept(self) -> dict[str, list[Any]]:
        """All that it knows, as JSON holds it."""
        return {
            "all": list(self._all),
            "chosen_longer": list(self._chosen_longer),
            "chosen_shorter": list(self._chosen_shorter),
        }

    def take(self, kept: dict[str, list[Any]]) -> None:
        """Know what `kept` has given."""
        self._all = deque(kept["all"], maxlen=WINDOW)
        self._chosen_longer = deque(kept["chosen_longer"], maxlen=WINDOW)
        self._chosen_shorter = deque(kept["chosen_shorter"], maxlen=WINDOW)

    def numbers(self) -> dict[str, float]:
        """The names and values that go into the log; nothing before the first pair."""
        if not self._all:
            return {}
        count = len(self._all)
        wins, chosen, rejected, chosen_tokens, rejected_tokens = (
            sum(column) for column in zip(*self._all, strict=True)
        )
        numbers = {
            "window/pairs": float(count),
            "window/accuracies": wins / count,
            "window/margins": self.beta * (chosen - rejected) / count,
        }
        if self.changes_are_known:
            numbers["window/chosen_change_per_token"] = chosen / max(chosen_tokens, 1)
            numbers["window/rejected_change_per_token"] = rejected / max(rejected_tokens, 1)
        for name, split in (("chosen_longer", self._chosen_longer), ("chosen_shorter", self._chosen_shorter)):
            if split:
                numbers[f"window/pairs_{name}"] = float(len(split))
                numbers[f"window/accuracies_{name}"] = sum(split) / len(split)
        return numbers
