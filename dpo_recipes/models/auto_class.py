"""Which of Transformers' classes loads a model: most are causal, and a vision-language model has a class of its own.

Leans on Transformers 5.23: the tables of its Auto classes.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)


def auto_class(config: Any) -> Any:
    """The Auto class of a config: the causal one, but for architectures that it does not know, and that see images."""
    kind = config.model_type
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def auto_class_of(path: str, **options: Any) -> Any:
    """The Auto class of a model folder or hub id; the folder of an adapter, which has no config, is its base's."""
    wanted = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
    try:
        return auto_class(AutoConfig.from_pretrained(path, **wanted))
    except Exception:  # whoever loads the model says what is wrong with it
        return AutoModelForCausalLM


def reads_images_in_another_class(config: Any) -> bool:
    """Whether the causal class of this config is its text part alone, so that it is never given an image."""
    kind = config.model_type
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    return causal is not None and MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind, causal) != causal


def language_part(model: Any) -> str:
    """The name of the module that reads text: what its embeddings are a part of, such as model.language_model."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    return name.rpartition(".")[0]
