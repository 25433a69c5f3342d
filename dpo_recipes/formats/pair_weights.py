"""What a pair weighs: its row's own weight, and the one that LLaMA-Factory writes beside each message."""

from __future__ import annotations

import math
from typing import Any

from .messages import Drop, Message, Row, is_empty, malformed

WEIGHT = "weight"  # the column of a row's own weight
OF_MESSAGE = "loss_weight"  # the key of a message's; that of a prompt's message is not read: no loss is of it
NOTHING = "weight is 0"


def without_weights(messages: list[Message]) -> list[Message]:
    """The messages as a chat template sees them."""
    if not any(OF_MESSAGE in message for message in messages):
        return messages
    without = []
    for message in messages:
        without.append({key: value for key, value in message.items() if key != OF_MESSAGE})
    return without


def weight_of_row(raw: Row) -> float:
    """The weight of a raw row, above 0; 1 where it has none. Drop for what is no weight."""
    if is_empty(raw.get(WEIGHT)):
        return 1.0
    return _weight(raw[WEIGHT], WEIGHT)


def weight_of_replies(chosen: list[Message], rejected: list[Message]) -> float:
    """The weight that an assistant's messages of both replies have, above 0; 1 where they have none.

    A pair's loss is one number, so that it cannot weigh its messages differently: Drop where they do.
    """
    said = [message for message in chosen + rejected if message["role"] == "assistant"]
    weights = {_weight(message[OF_MESSAGE], OF_MESSAGE, zero=True) for message in said if OF_MESSAGE in message}
    if not weights:
        return 1.0
    if len(weights) > 1:
        raise malformed(OF_MESSAGE, "differs between the replies of a pair", sorted(weights))
    [weight] = weights
    if not weight:
        raise Drop(NOTHING)
    return weight


def _weight(value: Any, field: str, *, zero: bool = False) -> float:
    """A weight, also as text, which a csv file has; `zero` where 0 is not yet the reason to drop the pair."""
    weight = math.nan
    if not isinstance(value, bool):
        try:
            weight = float(value)
        except (TypeError, ValueError):
            weight = math.nan
    if not 0 <= weight < math.inf:  # which not-a-number is not
        raise malformed(field, "is not a number of 0 or more", value)
    if not weight and not zero:
        raise Drop(NOTHING)
    return weight
