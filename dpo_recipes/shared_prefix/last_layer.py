"""The last layer, for those tokens alone whose hidden state is read behind it.

A hidden state behind the last layer serves to predict the next token and for nothing else, and of a prompt's tokens
only the last one predicts what is scored. All others have to be keys and values of the last attention. Their queries,
and whatever comes behind the attention, are work for nobody: with L layers up to 1/L of the model, where prompts are
long.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .layout import Row


def skip_unread_tokens(model: Any) -> None:
    """Let the last layer of a causal LM compute what is read alone, where it is given a `pair_row`.

    Behind its attention every module of a layer works on each token by itself. What does not would show in the first
    batch, which is compared with TRL's own forward.
    """
    for layer in _last_layers(model):
        skip = _Skip()
        of_adapted = _inside_adapted_layers(layer)
        for module in layer.modules():
            if module is not layer and module not in of_adapted:
                module.register_forward_pre_hook(skip.before, with_kwargs=True)
                module.register_forward_hook(skip.behind, with_kwargs=True)


def _last_layers(model: Any) -> list[nn.Module]:
    """The last layer, which ends a list of as many as the configuration says.

    So do others, such as the last layer of what a model sees with; these are never given a row.
    """
    layers = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    return [modules[-1] for modules in lists if len(modules) == layers]


def _inside_adapted_layers(layer: nn.Module) -> set[nn.Module]:
    """What the adapted layers of PEFT are made of, which is given no other tokens than they are."""
    adapted = [module for module in layer.modules() if hasattr(module, "get_base_layer")]
    return {inner for module in adapted for inner in module.modules() if inner is not module}


class _Skip:
    """Hooks around each module of the last layer.

    The layer's own hooks would not do: where it is checkpointed, they are not called when it is computed again.
    """

    def __init__(self) -> None:
        self.first: nn.Module | None = None  # with which the layer begins
        self.row: Row | None = None  # from the attention on, where there are tokens to skip
        self.module: nn.Module | None = None  # which computes for a part of the tokens, and all that is in it

    def before(self, module: Any, args: Any, given: dict[str, Any]) -> Any:
        """Note the row where the attention is given it, and behind that give a module the M tokens that are read.

        (..., N, width) -> (..., M, width). A module with several inputs is left as it is.
        """
        if self.first is None:
            self.first = module
        if module is self.first:
            self.row = self.module = None

        row = given.get("pair_row")
        if row is not None:
            if not row.skips_unread:
                return None
            row.last_attention = module
            row.is_behind_last_attention = False
            self.row = row
            return None

        row = self.row
        if row is None or not row.is_behind_last_attention or self.module is not None or given or len(args) != 1:
            return None
        hidden = args[0]
        if not isinstance(hidden, Tensor) or hidden.dim() < 2 or hidden.size(-2) != row.tokens.numel():
            return None
        self.module = module
        return (row.pick(hidden, dim=-2),), given

    def behind(self, module: Any, args: Any, given: dict[str, Any], output: Any) -> Any:
        """(..., M, width) -> (..., N, width), zero at the tokens that nobody reads."""
        if self.row is None or self.module is not module:
            return None
        self.module = None
        if isinstance(output, tuple):  # beside the hidden state, a router's choice
            return (self.row.spread(output[0], dim=-2), *output[1:])
        return self.row.spread(output, dim=-2)
