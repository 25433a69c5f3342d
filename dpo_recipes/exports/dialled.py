"""The policy nearer to its reference, as the beta dial has it: one model of scaled weights, and how near it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import RecipeError, UsageError
from ..progress import Stage
from ..recipe.recipe import Recipe
from ..runs import environment, files
from ..runs.folder import Run
from ..runs.model_card import scaled_card
from ..runs.rebuilt import recipe_of
from ..training.finished import policy_and_reference
from ..training.session import Session
from ..training.with_images import refuse_images
from .folders import copy_what_is_no_weight, write_export

if TYPE_CHECKING:
    import torch

    from ..models.scaled import ScaledAdapter, ScaledModel

COMPARED = 4  # held-out pairs whose log-probabilities are computed again with what was written
LARGEST_DIFFERENCE = 1e-5  # nats, of a token's log-probability between what was written and what was to be


def export_dialled(run: Run, factor: float, folder: Path, console: Console, place: Path) -> dict[str, Any]:
    """Write the model that is nearest to decoding with the dial at `factor`, and say how near; returns export.json.

    `place`: where its card says that it is.
    """
    recipe = recipe_of(run)
    session = Session(recipe, console)
    _refuse_other_model(recipe, session, run)
    session.read_pairs()
    refuse_images(session, "export --dial", "it samples answers")

    result: dict[str, Any] = {"run": str(run.path), "recipe": recipe.name}
    compared = session.eval.select(range(min(COMPARED, len(session.eval))))

    def fill(where: Path) -> None:
        expected = _write_scaled(where, run, session, factor, compared, result)
        result["versions"] = environment.installed()
        result["largest_difference"] = _largest_difference(where, run, session, compared, expected)
        files.write_json(where / "export.json", result)
        card = scaled_card(
            recipe,
            session.settings,
            base=session.model_path,
            base_is_on_the_hub=not Path(session.model_path).exists(),
            folder=place,
            result=result,
            auto_class=session.auto_class,
        )
        files.write_text(where / "README.md", card)

    write_export(folder, fill)
    return result


def refuse_factor(factor: float) -> None:
    """UsageError for a factor that leads to no new model."""
    if not 0 < factor < math.inf:
        raise UsageError(
            f"--dial {factor:g}: a number above 0. At 0 it is the reference itself, which was there before training."
        )


def _write_scaled(
    where: Path, run: Run, session: Session, factor: float, compared: Any, result: dict[str, Any]
) -> torch.Tensor:
    """Write the model and all that belongs to it; `result` learns how near it is.

    Returns the log-probabilities that it gives to the `compared` pairs in memory, which is free of it afterwards.
    """
    console = session.console
    with Stage(console, "Loading TRL"):
        from ..evaluation.dial import beyond_the_policy
        from ..evaluation.nearness import answer_logps, nearness

    warning = beyond_the_policy([factor])
    if warning:
        session.say(f"dial: {warning}")
    policy, reference, tokenizer = policy_and_reference(run, session)
    with Stage(console, "Scaling the weights"):
        scaled = _scaled(run, session.recipe, policy, reference, factor)
    result["form"] = scaled.in_words()
    with session.autocast():
        numbers = nearness(
            session.recipe,
            session.eval,
            policy,
            reference,
            scaled.model,
            tokenizer,
            session.positions(),
            factor,
            console,
        )
    result.update(numbers)
    result["warning"] = warning

    with Stage(console, "Writing the model"):
        copy_what_is_no_weight(run.model_folder, where)
        scaled.write(where)
    with scaled.model() as model:
        return answer_logps(model, compared)


def _refuse_other_model(recipe: Recipe, session: Session, run: Run) -> None:
    """What an adapter adds to its base cannot end at another model, which is not that base."""
    if session.settings.reference == "other model" and recipe.adapter is not None:
        raise RecipeError(
            f"{run.path} has trained an adapter of {recipe.in_words(recipe.model)}, and its reference is another "
            f"model, {recipe.reference}: no scale of the adapter leads there. The dial itself mixes the logits of "
            f"both, and works: dpo-recipes evaluate {run.path} --dial FACTOR"
        )


def _scaled(run: Run, recipe: Recipe, policy: Any, reference: Any, factor: float) -> ScaledAdapter | ScaledModel:
    """The model that is to be written, beside the policy."""
    from ..models.scaled import ScaledAdapter, ScaledModel

    if recipe.adapter is None:
        with reference.model() as start:
            return ScaledModel(policy, start, factor)
    continued = recipe.adapter.continue_from
    return ScaledAdapter(policy, run.model_folder, factor, start=continued)


def _largest_difference(where: Path, run: Run, session: Session, compared: Any, expected: torch.Tensor) -> float:
    """By how much a token's log-probability, of the model loaded from its files, differs from what it should be: nats.

    RecipeError where that is more than rounding.
    """
    from ..evaluation.nearness import answer_logps
    from ..models.trained import load_trained

    with Stage(session.console, "Loading what was written"):
        model, _ = load_trained(where, run.recipe)
        if not getattr(model, "is_quantized", False):  # 4-bit weights are where they stay
            model.to(session.settings.device)
        difference = float((answer_logps(model.eval(), compared) - expected).abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise RecipeError(
            f"What was written gives other log-probabilities than the model in memory, by up to {difference:.2g} nats "
            "a token: it is not kept. Versions of peft or transformers that differ from the tested ones may be why: "
            "dpo-recipes doctor"
        )
    return difference
