"""Policy and reference of a finished run, side by side, as they were when it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..progress import Stage
from ..runs.folder import Run
from .same_weights import refuse_changed_models
from .session import Session

if TYPE_CHECKING:
    from ..models.reference import Reference


def policy_and_reference(run: Run, session: Session) -> tuple[Any, Reference, Any]:
    """(policy, its reference, tokenizer) of a run; `session` is its recipe on this machine.

    RecipeError where the run has no model, or its reference is gone.
    """
    from ..models.reference import Reference

    recipe = session.recipe
    kind = session.settings.reference
    if kind == "moving copy":
        raise RecipeError(
            f"The reference of {run.path} moved while it trained, and is not kept: there is nothing to put beside the "
            "policy. Its model answers with plain transformers, as its README.md shows."
        )

    with Stage(session.console, "Loading and checking the model"):
        policy, tokenizer = run.load_model()
        if not getattr(policy, "is_quantized", False):  # 4-bit weights are where they stay
            policy.to(session.settings.device)
        if kind == "frozen adapter":
            assert recipe.adapter is not None
            policy.load_adapter(recipe.adapter.continue_from, adapter_name="ref")
    refuse_changed_models(run, session)
    return policy, Reference(policy, session.settings, session.load_reference), tokenizer
