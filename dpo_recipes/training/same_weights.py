"""Whether the models that a finished run names are still those that it was trained with.

An adapter on another base is another model, and no library says so: a folder that has been written anew, or a model of
the hub that has a new commit, would give answers and numbers that belong to no run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..progress import Stage
from ..runs.folder import Run

if TYPE_CHECKING:
    from .session import Session


def weights_of(session: Session) -> dict[str, dict[str, Any]]:
    """`weights` of reference.json: of each model that the recipe names, by its field, what it is known by.

    When they have been loaded, as until then a model of the hub may have a newer commit.
    """
    from ..models.weight_hash import known_by

    found = {}
    with Stage(session.console, "Hashing the models' files"):
        for field, (path, revision) in _models(session).items():
            known = known_by(path, revision)
            if known is not None:
                found[field] = known
    return found


def refuse_changed_models(run: Run, session: Session) -> None:
    """RecipeError where a model that a run names has other weights today. `session`: its recipe, its models loaded."""
    from ..models.weight_hash import refuse_changed_weights

    with Stage(session.console, "Hashing the models' files"):
        for field, (path, revision) in _models(session).items():
            refuse_changed_weights(field, path, revision, run.weights.get(field), run.path)


def _models(session: Session) -> dict[str, tuple[str, str | None]]:
    """Field -> folder or hub id, and its revision."""
    recipe = session.recipe
    models = {"model": (session.model_path, recipe.revision)}
    if session.reference_path:
        models["reference"] = (session.reference_path, None)
    if session.reference_adapter:
        models["reference"] = (session.reference_adapter, None)
        models["the base of reference"] = (session.reference_path, None)
    if recipe.adapter is not None and recipe.adapter.continue_from:
        models["adapter.continue_from"] = (recipe.adapter.continue_from, None)
    return models
