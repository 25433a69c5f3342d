"""What models/skeleton.py builds on paper as DPOTrainer would build it.

Read again: in `DPOTrainer.__init__` all that changes shapes, types or what is trained: the adapter, its copy, the cast
over quantised weights. In bitsandbytes, how a weight is quantised. tests/models/test_skeleton.py compares the two.
"""

from __future__ import annotations

import bitsandbytes
from bitsandbytes import functional
from reading_trl import SOURCE, leaning


def test_the_frozen_copy_has_the_configuration_of_the_adapter():
    text = 'model.add_adapter("ref", default_config)'
    assert text in SOURCE["__init__"], leaning("models/skeleton.py", "add_adapter('ref', ...)")


def test_4bit_layers_quantise_their_weights_by_these_names():
    weight = bitsandbytes.nn.Linear4bit(16, 16).weight
    assert hasattr(weight, "_quantize"), leaning("models/skeleton.py", "Params4bit._quantize")
    assert hasattr(functional, "create_dynamic_map"), leaning("models/skeleton.py", "create_dynamic_map")
    assert hasattr(functional, "name2qmap"), leaning("models/skeleton.py", "name2qmap")
