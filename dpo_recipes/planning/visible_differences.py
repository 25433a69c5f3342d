"""How small a difference an evaluation can show, from the number of its pairs and prompts alone.

What is asked is the usual: a difference that is there is seen, by a two-sided test at 5 %, in 80 of 100 evaluations.
Both tests are the normal approximation (Fleiss, Levin, Paik: Statistical Methods for Rates and Proportions, 3rd ed.):

* Two proportions, each of n draws of its own (section 4.2): n = (z_a sqrt(2 p q) + z_b sqrt(p1 q1 + p2 q2))^2 / d^2,
  p the mean of p1 and p2, q = 1 - p, d = p2 - p1.
* The same n draws looked at twice, McNemar's test (section 13.6; Connor, Biometrics 43, 1987):
  n = (z_a sqrt(c) + z_b sqrt(c - d^2))^2 / d^2, c the share of draws on which the two looks differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

Z_LEVEL = NormalDist().inv_cdf(1 - 0.05 / 2)
Z_POWER = NormalDist().inv_cdf(0.80)

BASE = 0.5  # the proportion of the first look: an accuracy before training, a win rate of equals; no other needs more
CHANGING = 0.2  # of the pairs, that two trained models rank differently: what is assumed before there are two
WANTED = 0.02  # two points


def visible(count: int) -> dict[str, float | int | None]:
    """What so many pairs or prompts can show, paired and unpaired; and how many would show WANTED."""
    return {
        "count": count,
        "paired": visible_paired(count),
        "unpaired": visible_unpaired(count),
        "wanted": WANTED,
        "needed_paired": needed_paired(WANTED),
        "needed_unpaired": needed_unpaired(WANTED),
    }


def needed_unpaired(difference: float, base: float = BASE) -> int:
    """Draws in each of two evaluations of their own that show `difference` from a proportion of `base`."""
    other = base + difference
    mean = (base + other) / 2
    together = Z_LEVEL * math.sqrt(2 * mean * (1 - mean))
    apart = Z_POWER * math.sqrt(base * (1 - base) + other * (1 - other))
    return math.ceil(((together + apart) / difference) ** 2)


def needed_paired(difference: float, changing: float = CHANGING) -> int:
    """Draws, the same in both evaluations, that show `difference` where a share of `changing` comes out differently."""
    spread = Z_LEVEL * math.sqrt(changing) + Z_POWER * math.sqrt(changing - difference**2)
    return math.ceil((spread / difference) ** 2)


def visible_unpaired(count: int, base: float = BASE) -> float | None:
    """The smallest difference that so many draws a side show; None where not even the largest is seen."""
    return _smallest(lambda difference: needed_unpaired(difference, base) <= count, largest=1 - base)


def visible_paired(count: int, changing: float = CHANGING) -> float | None:
    """The smallest difference that so many draws, the same in both, show; None where not even `changing` itself is."""
    return _smallest(lambda difference: needed_paired(difference, changing) <= count, largest=changing)


def _smallest(is_seen: Callable[[float], bool], largest: float) -> float | None:
    """By halving: what is seen once is seen too where it is larger."""
    if not is_seen(largest):
        return None
    low, high = 0.0, largest
    for _ in range(40):
        middle = (low + high) / 2
        if is_seen(middle):
            high = middle
        else:
            low = middle
    return high
