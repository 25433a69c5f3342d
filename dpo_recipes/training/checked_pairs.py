"""The pairs of a recipe as a run takes them: read, tokenised, judged and counted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data.rows_cache import refuse_damaged_cache
from ..errors import Finding, RecipeError
from ..formats.image_marks import IMAGES
from ..formats.pair_weights import WEIGHT
from ..losses.trl_losses import COUPLED_LOSSES
from ..recipe.choices import Choice
from ..runs.folder import Run
from ..runs.unwritable import UNWRITABLE
from ..signals import interruptible
from .length import length_findings
from .tqdm_bars import shown_as_ours

if TYPE_CHECKING:
    from ..data.image_pairs import ImageReader
    from ..data.preference_dataset import Read
    from ..data.template_trial import Trial
    from .session import Session


def read_pairs(session: Session, all_held_out: bool) -> None:
    """Read, tokenise and judge the pairs. RecipeError where nothing can be judged; what was judged is a finding.

    `all_held_out`: nothing is trained on, so that all pairs are on both sides.
    """
    try:
        with interruptible(), shown_as_ours(session.console):
            _read_pairs(session, all_held_out)
    except OSError as error:
        refuse_damaged_cache(error, session.recipe.data.name)
        if error.errno in UNWRITABLE or error.filename:  # of a file of the data it is said where it is read
            raise RecipeError(
                f"The pairs cannot be kept in the cache of data sets: {error}. HF_DATASETS_CACHE names another place."
            ) from error
        raise RecipeError(
            f"The data set {session.recipe.data.name} cannot be read: {error}. Connect and run again, or name a "
            "local file: data.path=/path/to/pairs.jsonl"
        ) from error


def _read_pairs(session: Session, all_held_out: bool) -> None:
    from ..data import preference_dataset
    from ..data.chat_template import template_findings
    from ..data.findings import contradiction_findings, near_duplicate_findings, weight_findings
    from ..data.template_trial import trial_findings, try_template

    data = session.recipe.data
    explicit = preference_dataset.read(
        data,
        session.data_paths,
        num_proc=session.recipe.trl.get("dataset_num_proc"),
        seed=session.recipe.seed,
        all_held_out=all_held_out,
    )
    images, chosen = _image_reader(session, explicit)
    template = _template(session, explicit.text)

    session.report = explicit.report
    session.findings = [Finding("pass", "pairs", note) for note in explicit.report["notes"]]
    session.findings += [Finding("pass", "images", as_sentence(choice.reason)) for choice in chosen]
    session.findings += template_findings(template, data.chat_template_kwargs)
    if template is not None:
        trial = try_template(images or session.tokenizer.tokenizer, data.chat_template_kwargs)
        session.findings += trial_findings(trial)
        if data.system == "merge":
            _merge_system(session, explicit, trial)
    session.train = _tokenized(session, "train", explicit.train, explicit.text, images)
    session.eval = _tokenized(session, "eval", explicit.eval, explicit.text, images)
    session.findings += contradiction_findings(session.report, allow=data.allow, max_dropped=data.max_dropped)
    session.findings += near_duplicate_findings(session.report)
    if not data.streaming and WEIGHT in session.train.column_names:
        weights = session.train.with_format("numpy")[WEIGHT][:]
        session.report["weights"] = {name: float(getattr(weights, name)()) for name in ("min", "max", "mean")}
        session.findings += weight_findings(weights, sorted(session.recipe.loss_names & COUPLED_LOSSES))
    session.findings += length_findings(session.recipe, None if data.streaming else len(session.train))
    if session.recipe.max_length is None and not data.streaming:
        _compare_with_positions(session)

    session.report["text"] = explicit.text
    session.report["template_sha256"] = None
    if template is not None:
        rendering = f"{template}{data.chat_template_kwargs}"
        session.report["template_sha256"] = hashlib.sha256(rendering.encode()).hexdigest()


def as_sentence(reason: str) -> str:
    """A reason with a capital letter and a full stop."""
    return f"{reason[0].upper()}{reason[1:]}."


def _merge_system(session: Session, explicit: Read, trial: Trial) -> None:
    """Put system messages before questions, where the chat template has no place of its own for them."""
    from ..data.chat_template import merge_system

    if trial.takes_system:
        text = "data.system=merge changes nothing: the chat template has a system role."
        session.findings.append(Finding("warn", "system", text))
        return
    explicit.train = explicit.train.map(merge_system, features=explicit.train.features)
    explicit.eval = explicit.eval.map(merge_system, features=explicit.eval.features)
    text = f"System messages were put before the first question: as they are, the chat template {trial.system} them."
    session.findings.append(Finding("pass", "system", text))


def _compare_with_positions(session: Session) -> None:
    """Where no max_length cuts the pairs, the longest must fit the model: else a finding."""
    from ..models.limits import refuse_longer_pairs

    longest = max([0, *session.train["length"], *session.eval["length"]])
    try:
        config = session.config(session.model_path)
        refuse_longer_pairs(longest, f"A pair of {longest:,} tokens", config, session.model_path)
    except RecipeError as error:
        session.findings.append(Finding("fail", "positions", str(error)))


def _template(session: Session, text: bool) -> str | None:
    """The chat template that renders the pairs; None for plain strings, which need none."""
    if text:
        return None
    template = session.tokenizer.tokenizer.chat_template
    if template is None:
        raise RecipeError(
            f"The data are conversations, and the tokenizer of {session.recipe.model!r} has no chat template to "
            "render them. Ways out: an instruct model, data.chat_template= in Jinja, or data.format=text: plain "
            "strings."
        )
    return template


def _image_reader(session: Session, explicit: Read) -> tuple[ImageReader | None, list[Choice]]:
    """(the processor of pairs with images, which the session then trains with; what they decide of the recipe).

    None and nothing where the pairs are text.
    """
    if session.recipe.data.streaming or IMAGES not in explicit.train.column_names:
        return None, []
    from ..data.image_pairs import ImageReader

    chosen = session.take_processor()
    return ImageReader(session.tokenizer.processor, session.recipe.data.chat_template_kwargs), chosen


def _tokenized(session: Session, split: str, pairs: Any, text: bool, images: ImageReader | None) -> Any:
    """The pairs of a split that can teach something, as token ids; report and findings learn what became of all."""
    from ..data import tokenize
    from ..data.findings import split_findings
    from ..data.images import count_images

    recipe = session.recipe
    report = session.report[split]
    tokenized, lengths = tokenize.prepare(
        pairs,
        session.tokenizer.tokenizer,
        text=text,
        max_length=recipe.max_length,
        ends=session.ends,
        drop_truncated=recipe.data.drop_truncated,
        num_proc=recipe.trl.get("dataset_num_proc"),
        split=split,
        micro_batch_size=session.settings.micro_batch_size,
        seed=recipe.seed,
        dropped=report["dropped"],
        images=images,
    )
    if images is not None:
        report["images"] = count_images(tokenized)
    if "pairs" in lengths:  # of a stream nothing is known before it is read
        report.update(lengths)
        report["kept"] = len(tokenized)

    session.findings += split_findings(
        report,
        split,
        allow=recipe.data.allow,
        max_dropped=recipe.data.max_dropped,
        max_length=recipe.max_length,
    )
    return tokenized


def hash_pairs(session: Session, splits: Sequence[str] = ("train", "eval")) -> None:
    """Let the report say which pairs these are, by their token ids; those of a stream are not known."""
    from ..data.batches import sha256_of
    from ..data.tokenize import IDS

    if session.recipe.data.streaming:
        return
    pairs = {"train": session.train, "eval": session.eval}
    for split in splits:
        session.report[split]["sha256"] = sha256_of(pairs[split], IDS)


def are_other_pairs(session: Session, run: Run, split: str) -> bool:
    """Whether a split has other pairs today than when a run read it, as far as that run has said which those were."""
    hash_pairs(session, [split])
    then = run.data[split].get("sha256")
    return then is not None and then != session.report[split].get("sha256")
