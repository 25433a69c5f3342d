"""What the tests of models share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asking_endpoint import Sampler
from serving import served


@pytest.fixture
def stub() -> Iterator[Sampler]:
    with served(Sampler()) as stub:
        yield stub
