"""What models/weights.py leaves to TRL, and what it does to weights before TRL gets them.

Read again: in `DPOTrainer.__init__` where a new adapter is put on the model and where a loaded one is copied; in
bitsandbytes, `Linear4bit.forward` and the flag that it asks.
"""

from __future__ import annotations

import inspect

from peft import PeftModel
from reading_trl import SOURCE, leaning


def test_trl_puts_a_new_adapter_on_the_model_and_copies_one_that_is_there():
    init = SOURCE["__init__"]
    assert "model = get_peft_model(model, peft_config" in init, leaning("models/weights.py", "TRL adds a new adapter")
    copied, cast = init.index('model.add_adapter("ref", default_config)'), init.index("lora_magnitude_vector")
    assert copied < cast, leaning("models/weights.py", "TRL copies the adapter before it casts it")


def test_a_loaded_adapter_can_be_trained():
    parameters = inspect.signature(PeftModel.from_pretrained).parameters
    assert "is_trainable" in parameters, leaning("models/weights.py", "PeftModel.from_pretrained(is_trainable=)")


def test_a_4bit_layer_repacks_itself_where_a_flag_allows_it():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(16, 16)
    assert layer.support_avx512bf16_for_cpu in (0, 1), leaning("models/weights.py", "Linear4bit's flag")
    forward = inspect.getsource(bitsandbytes.nn.Linear4bit.forward)
    assert "self.support_avx512bf16_for_cpu\n" in forward, leaning(
        "models/weights.py", "the flag is asked at every forward"
    )
