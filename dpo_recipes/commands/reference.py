"""The reference log-probabilities of a recipe's pairs, as a folder that other runs and other machines can read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import UsageError, stop_at_fails
from ..planning.chosen_settings import adopt
from ..recipe.recipe import Recipe
from ..runs import environment
from ..training.session import LOOKS_ONLY, Session


def reference(recipe: Recipe, *, out: Path | str, console: Console | None = None) -> dict[str, Any]:
    """Compute what the recipe's reference gives for its train and eval pairs, and write it into the folder `out`.

    What this machine knows already is taken from its cache. Returns what stands in the folder's reference.json, which
    says whose numbers they are. UsageError where the folder is there already, or the recipe's reference has no numbers
    that last; RecipeError where the recipe cannot be trained.
    """
    console = console or Console(quiet=True)
    folder = Path(out)
    if folder.exists():
        raise UsageError(f"{folder} is there already. Remove it, or name another: --out FOLDER")
    if recipe.data.streaming or recipe.trl.get("sync_ref_model"):
        raise UsageError(
            "Reference log-probabilities are computed in each step where data.streaming reads pairs as they come, or "
            "trl.sync_ref_model moves the reference: there is nothing to be kept."
        )
    if recipe.data.reference is not None:
        raise UsageError(f"data.reference={recipe.data.reference} is what this would write. Delete it to compute anew.")

    # However long the recipe trains: the pairs are all of them.
    options = {name: value for name, value in recipe.trl.items() if name not in ("max_steps", "warmup_steps")}
    recipe = recipe.evolve(num_train_epochs=1.0, trl={**options, "precompute_ref_log_probs": True})
    session = Session(recipe, console)
    session.check_model()
    session.try_options()
    session.read_pairs()
    stop_at_fails(session.findings)

    adopt(session, tell=False)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = session.make_trainer(Path(scratch), [], **LOOKS_ONLY)
        session.say(trainer.reference_in_words())
        return _write(folder, session, trainer)


def _write(folder: Path, session: Session, trainer: Any) -> dict[str, Any]:
    """The folder; returns its identity."""
    # Imported here: NumPy and pyarrow are not needed to refuse a recipe.
    from ..training import published_reference

    recipe, args = session.recipe, trainer.args
    splits = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    identity = {
        "model": recipe.in_words(recipe.reference or recipe.model),
        "revision": recipe.revision,
        "kind": session.settings.reference,
        "fingerprint": trainer.fingerprint(),
        "data": recipe.in_words(recipe.data.name),
        "template_sha256": session.report["template_sha256"],
        "max_length": args.max_length,
        "truncation_mode": args.truncation_mode,
        "ld_alpha": args.ld_alpha,
        "weights": session.settings.weights,
        "autocast": session.settings.autocast,
        "half": trainer.half,
        "attention": (trainer.ref_model or trainer.model).config._attn_implementation,
        "device": session.settings.device,
        "versions": environment.installed(),
        "pairs": {split: len(pairs) for split, pairs in splits.items()},
    }
    return published_reference.write(folder, identity, splits, args.max_length)
