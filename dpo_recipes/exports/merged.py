"""The adapter of a run in the weights of its base: one plain model, measured beside the adapter that it was made of.

Four bits are left behind: an adapter that was trained over them is merged into that base as it was computed with and
into the original one, and the model that is nearer to what was trained is kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import RecipeError
from ..models.model_folder import base_of_run, refuse_model_of_run
from ..progress import Stage
from ..recipe.adapters import QLoRA
from ..recipe.recipe import Recipe
from ..runs import environment, files
from ..runs.folder import Run
from ..runs.model_card import merged_card
from ..runs.rebuilt import recipe_of
from ..training.same_weights import refuse_changed_models
from ..training.session import Session
from .folders import copy_what_is_no_weight, write_export

if TYPE_CHECKING:
    import torch

ROOM = 1.3  # of what the weights take, for what is computed beside them
COMPARED = 16  # held-out pairs whose log-probabilities tell whether two models are the same
DTYPES = ("bfloat16", "float16", "float32")
# Nats per token, as means over all tokens compared
LARGEST_EXACT = 1e-4  # between the adapter on its base and both merged in 32 bits: a sum in another order
LARGEST_SHARE = 0.5  # of what the adapter has moved its base: what rounding the weights to their type may cost


def export_merged(run: Run, folder: Path, console: Console, place: Path, dtype: str | None = None) -> dict[str, Any]:
    """Write the merged model, and say how near it is to adapter and base; returns export.json.

    `place`: where its card says that it is. `dtype`: the type of its weights (DTYPES), None for that of the base.
    RecipeError where there is nothing to merge, and where the merged model is not what was trained.
    """
    recipe = recipe_of(run)
    _refuse_whole_model(run, recipe, folder)
    refuse_model_of_run(run.model_folder, is_adapter=True)
    session = Session(recipe, console)
    session.read_pairs()
    if session.has_images:
        session.say("What is merged is compared with adapter and base on the texts of the pairs, without their images.")
    pairs = session.eval.select(range(min(COMPARED, len(session.eval))))
    result: dict[str, Any] = {"run": str(run.path), "recipe": recipe.name, "pairs": len(pairs)}

    def fill(where: Path) -> None:
        _write_merged(where, run, session, pairs, folder, dtype, result)
        result["versions"] = environment.installed()
        files.write_json(where / "export.json", result)
        card = merged_card(
            recipe,
            base_is_on_the_hub=not Path(result["base"]).exists(),
            folder=place,
            result=result,
            auto_class=session.auto_class,
        )
        files.write_text(where / "README.md", card)

    write_export(folder, fill)
    return result


def _refuse_whole_model(run: Run, recipe: Recipe, folder: Path) -> None:
    if recipe.adapter is None:
        raise RecipeError(
            f"{run.path} has trained the whole model, so there is no adapter to merge: {run.model_folder} is a plain "
            f"Transformers model already. To have it elsewhere, copy it: cp -r {run.model_folder} {folder}"
        )


def _write_merged(
    where: Path, run: Run, session: Session, pairs: Any, folder: Path, dtype: str | None, result: dict[str, Any]
) -> None:
    """Write the model and all that belongs to it; `result` learns how near it is."""
    console = session.console
    with Stage(console, "Loading TRL"):
        from ..models.merged import DEQUANTISED, ORIGINAL, dtype_of, merged, unmerged

    adapter = run.model_folder
    weights = _weights_of_4_bits(run, session)
    result["base"] = base_of_run(adapter)
    with Stage(console, "Loading the adapter on its base"):
        policy = _in_32_bits(unmerged(_base(session, result["base"]), adapter, weights))
    refuse_changed_models(run, session)
    trained = _logps(session, policy, pairs, "Log-probabilities of the adapter")
    with policy.disable_adapter():
        of_base = _logps(session, policy, pairs, "Log-probabilities of the base")
    del policy
    result["tokens"] = len(trained)
    result["from_base"] = _apart(trained, of_base)
    exact = merged(_in_32_bits(_base(session, result["base"])), adapter, weights)
    result["in_32_bits"] = _apart(trained, _logps(session, exact, pairs, "Log-probabilities merged in 32 bits"))
    del exact
    _refuse_inexact(result)

    target = ORIGINAL
    if weights is not None:
        target = _nearer_base(session, adapter, result, weights, pairs, trained, dtype)
    plain = _merge(session, adapter, result["base"], weights if target == DEQUANTISED else None, dtype)
    result["merged_into"] = target
    result["dtype"] = str(dtype_of(plain)).removeprefix("torch.")
    result["tolerance"] = LARGEST_SHARE * result["from_base"]["mean"]
    _refuse_full_disk(plain, where, folder)
    with Stage(console, "Writing the model"):
        copy_what_is_no_weight(adapter, where)
        plain.save_pretrained(str(where))

    written = _read_again(session, where, plain)
    del plain
    logps = _logps(session, _in_32_bits(written), pairs, "Log-probabilities of what was written")
    result["difference"] = _apart(trained, logps)
    _refuse_another_model(result, changed=not bool((logps == of_base).all()))


def _logps(session: Session, model: Any, pairs: Any, words: str) -> torch.Tensor:
    """The log-probability of each answer's token of these pairs, nats."""
    from ..evaluation.nearness import answer_logps

    with Stage(session.console, words):
        return answer_logps(model, pairs)


def _apart(logps: torch.Tensor, others: torch.Tensor) -> dict[str, float]:
    """How far two models' log-probabilities of the same tokens are apart: nats per token."""
    differences = (logps - others).abs()
    return {"mean": float(differences.mean()), "largest": float(differences.max())}


def _merge(
    session: Session, adapter: Path, base: str, weights: dict[str, torch.Tensor] | None, dtype: str | None
) -> Any:
    import torch

    from ..models.merged import merged

    with Stage(session.console, "Merging the adapter"):
        if dtype is None:
            return merged(_base(session, base), adapter, weights)
        in_32_bits = merged(_base(session, base).float(), adapter, weights)
        plain = in_32_bits.to(getattr(torch, dtype))
    too_large = [name for name, parameter in plain.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if too_large:
        raise RecipeError(
            f"The weights of {min(too_large)} are too large for {dtype}. Take --dtype bfloat16 or float32."
        )
    return plain


def _base(session: Session, path: str) -> Any:
    from ..models.merged import load_base

    return load_base(path, revision=session.recipe.revision, trust_remote_code=session.recipe.trust_remote_code)


def _weights_of_4_bits(run: Run, session: Session) -> dict[str, torch.Tensor] | None:
    """What a 4-bit base computes with, by name; None where the base is not of 4 bits."""
    from ..models.merged import dequantised_weights

    if not isinstance(session.recipe.adapter, QLoRA):
        return None
    with Stage(session.console, "Loading the 4-bit base"):
        policy, _ = run.load_model()
        return dequantised_weights(policy)


def _in_32_bits(model: Any) -> Any:
    """The model ready to be compared, where it has room; 16 bits would add noise that is larger than a short training.

    Its buffers stay as they are.
    """
    import torch

    numbers = 0
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
        numbers += parameter.numel()
    has_room = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > ROOM * 4 * numbers
    return model.to("cuda" if has_room else "cpu").eval()


def _nearer_base(
    session: Session,
    adapter: Path,
    result: dict[str, Any],
    weights: dict[str, torch.Tensor],
    pairs: Any,
    trained: torch.Tensor,
    dtype: str | None,
) -> str:
    """Which base to merge into, of an adapter that was trained over 4 bits; `result` learns how near each leads."""
    from ..models.merged import DEQUANTISED, ORIGINAL

    means = {}
    result["bases"] = []
    for name, of_4_bits in ((DEQUANTISED, weights), (ORIGINAL, None)):
        candidate = _merge(session, adapter, result["base"], of_4_bits, dtype)
        logps = _logps(session, _in_32_bits(candidate), pairs, f"Log-probabilities over {name}")
        apart = _apart(trained, logps)
        means[name] = apart["mean"]
        result["bases"].append({"merged_into": name, **apart})
    return min(means, key=lambda name: means[name])


def _refuse_full_disk(model: Any, where: Path, folder: Path) -> None:
    """Known before gigabytes are written."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free = shutil.disk_usage(where).free
    if needed > free:
        raise RecipeError(
            f"{folder} cannot be written: the merged model takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are "
            "free there. Choose another place: --out FOLDER"
        )


def _read_again(session: Session, where: Path, plain: Any) -> Any:
    """What was written, as Transformers loads it. RecipeError where a weight is not the one that was to be written."""
    import torch

    from ..models.checkpoint import load_checkpoint

    with Stage(session.console, "Loading what was written"):
        written = load_checkpoint(str(where), dtype="auto", trust_remote_code=session.recipe.trust_remote_code)
    ours, theirs = plain.state_dict(), written.state_dict()
    other = [name for name in ours if name not in theirs or not torch.equal(ours[name].cpu(), theirs[name].cpu())]
    if other:
        raise RecipeError(
            f"What was written loads as another model: {len(other)} of its weights are not those that were merged, "
            f"such as {min(other)}. It is not kept. Versions of peft or transformers that differ from the tested ones "
            "may be why: dpo-recipes doctor"
        )
    return written


def _refuse_inexact(result: dict[str, Any]) -> None:
    """RecipeError where the adapter is not what was merged, or there is nothing in it."""
    if result["from_base"]["mean"] == 0:
        raise RecipeError(
            "The adapter changes no log-probability of the held-out pairs, so the merged model would be its base. "
            "Nothing was learned, or the adapter is not the one that was trained."
        )
    away = result["in_32_bits"]["mean"]
    if not away <= LARGEST_EXACT:
        raise RecipeError(
            f"Merged in 32 bits, the model is {away:.2g} nats per token away from the adapter on its base, above the "
            f"{LARGEST_EXACT:g} of rounding: this adapter cannot be merged, or versions of peft or transformers differ "
            "from the tested ones: dpo-recipes doctor. The adapter works as it is."
        )


def _refuse_another_model(result: dict[str, Any], *, changed: bool) -> None:
    """RecipeError where what was written is the base, or has lost too much of what was learned."""
    away, moved, dtype = result["difference"]["mean"], result["from_base"]["mean"], result["dtype"]
    if not changed:
        raise RecipeError(
            f"Rounded to {dtype}, the merged model is its base: all that the adapter has learned is lost. It is not "
            "kept: use the adapter as it is, or train longer."
        )
    if not away <= result["tolerance"]:
        raise RecipeError(
            f"What the adapter has learned is lost when the weights are rounded to {dtype}: the merged model is "
            f"{away:.2g} nats per token away from the adapter, and the base is only {moved:.2g}. It is not kept: use "
            "the adapter as it is, or train longer."
        )
