"""Preference pairs from the recipe's own model: sampled, scored by the recipe's reward, ranked."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from ..data.prompts import as_text, read_prompts
from ..data.ranked_pairs import Pairing, Score, by_last_question, preference_pairs
from ..data.replies import question
from ..errors import RecipeError, UsageError
from ..evaluation.rehearsal import number_of
from ..losses.selection import name_of
from ..progress import Stage
from ..recipe.judges import Endpoint, JudgeEndpoint, RewardModel
from ..recipe.recipe import PREPARED, Recipe
from ..result_tables import pairs_table
from ..runs import files
from ..training.session import Session

if TYPE_CHECKING:
    from ..data.replies import Messages, Reply
    from ..models.endpoint import Bill

LONGEST_REPLY = 256  # tokens, where nothing else is said
LEAST_ROOM = 16  # tokens, for a reply
HELD_OUT = 0.05  # of the prompts, where the recipe names no share


class Sampling(NamedTuple):
    """How replies are drawn."""

    samples: int  # replies to a prompt
    temperature: float
    max_new_tokens: int
    seed: int

    def of_a_token(self) -> dict[str, Any]:
        """What decides on each token of a reply."""
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}


def pairs(
    recipe: Recipe,
    *,
    prompts: str | Path,
    to: str | Path,
    samples: int = 4,
    pairing: Pairing = "all",
    per_prompt: int | None = None,
    temperature: float = 1.0,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    endpoint: Endpoint | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Sample `samples` replies of the recipe's model, as it is before training, to each prompt; rank them; write pairs.

    With `endpoint` the replies are those of the model that is served there.

    In the folder `to`: train.jsonl and eval.jsonl (the pairs of held-out prompts), replies/ with every reply,
    settings.json and report.json, which is returned too. Called again it goes on where it was, and ranks what is there
    anew. `prompts`: a file, as data.prompts.read_prompts takes it. `max_new_tokens` None: 256, or what `max_length`
    leaves behind the longest prompt. RecipeError for what is the user's to mend.
    """
    console = console or Console(quiet=True)
    folder = Path(to)
    if recipe.reward is None:
        raise UsageError(
            f"{recipe.name} has no reward to rank replies by. Give it one in its file: "
            "reward=function(prompt, completion) -> float, or reward=RewardModel(folder)"
        )
    if isinstance(recipe.reward, JudgeEndpoint):
        raise UsageError(
            f"The reward of {recipe.name} is a judge, which compares two answers and gives none a number to rank it "
            "by. Replies are ranked by reward=function(prompt, completion) -> float, or a RewardModel."
        )
    if samples < 2:
        raise UsageError(f"-n {samples}: a pair needs two replies to a prompt.")
    if temperature <= 0:
        raise UsageError(f"--temperature {temperature:g}: the replies to a prompt would be one. Sample at 0.7 to 1.")
    asked, repeated = read_prompts(str(prompts))
    if not isinstance(recipe.reward, RewardModel):  # what is wrong with it is known before anything is sampled
        number_of(name_of(recipe.reward), recipe.reward, question(asked[0]), "")

    session = Session(recipe, console, with_pairs=False)
    if session.tokenizer.tokenizer.chat_template is None:
        asked = as_text(asked)
    sampling = Sampling(
        samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens or _room_behind(asked, session),
        seed=recipe.seed if seed is None else seed,
    )
    if endpoint is None:
        session.check_model()
        replies = _replies(session, asked, folder, sampling)
    else:
        replies = _replies_of_endpoint(endpoint, session, asked, folder, sampling)

    with Stage(console, "Reward of the replies", len(asked), "prompts") as stage:
        rows, report = preference_pairs(
            asked,
            replies,
            _score(recipe.reward, session.settings.device),
            pairing=pairing,
            per_prompt=per_prompt,
            seed=recipe.seed,
            progress=stage.show,
        )
    report["repeated_prompts"] = repeated
    if endpoint is not None:
        report["endpoint"] = _read_bill(folder, endpoint)
    _write_pairs(folder, recipe, asked, rows, report)
    console.print(pairs_table(report))
    _refuse_too_few(report)
    return report


def _score(reward: Callable[[str, str], float] | RewardModel, device: str) -> Score:
    """The rewards of several replies to a prompt: the recipe's function of each, or its reward model of all."""
    if isinstance(reward, RewardModel):
        from ..models.reward_model import Scorer

        scorer = Scorer(reward, device)
        return lambda prompt, texts: scorer.scores([prompt] * len(texts), texts)
    return by_last_question(functools.partial(number_of, name_of(reward), reward))


def _refuse_too_few(report: dict[str, Any]) -> None:
    """RecipeError where no run could be made of the pairs; what was sampled stays."""
    if not report["train"]:
        raise RecipeError(
            f"{report['pairs']} pairs came of {report['replies']} replies, and none is left to train on. The table "
            "says why: unfinished replies need --max-new-tokens, equal ones more of them (-n), or a reward that tells "
            "them apart."
        )
    if not report["eval"]:
        raise RecipeError(
            f"{report['train']} pairs to train on, and none of the {report['held_out_prompts']} prompts held out gave "
            "a pair, so that a run could not be judged. Hold out more of them, data.eval=0.2, or give more prompts."
        )


def _replies(
    session: Session,
    asked: Sequence[Messages | str],
    folder: Path,
    sampling: Sampling,
) -> list[list[Reply]]:
    """The replies to every prompt: those that the folder holds, and the rest sampled from the policy's start."""
    with Stage(session.console, "Loading the libraries"):
        from ..models.generate import generate
        from ..models.weights import load_weights
        from ..training.reference_cache import fingerprint

    tokenizer = session.tokenizer.tokenizer
    template_kwargs = session.recipe.data.chat_template_kwargs
    with Stage(session.console, "Loading and checking the model"):
        model = load_weights(session.recipe, session.settings, session.model_path, say=session.say)
        if not getattr(model, "is_quantized", False):  # 4-bit weights are where they stay
            model.to(session.settings.device)

    sample = functools.partial(
        generate,
        model,
        tokenizer,
        samples=sampling.samples,
        chat_template_kwargs=template_kwargs,
        **sampling.of_a_token(),
    )
    settings = {
        "model": session.recipe.in_words(session.recipe.model),
        "weights": fingerprint(model),
        "chat_template": _hash(f"{tokenizer.chat_template}{template_kwargs}"),
        **sampling.of_a_token(),
    }
    with session.autocast():
        return _sampled(session, asked, folder, sample, settings, sampling)


def _replies_of_endpoint(
    endpoint: Endpoint,
    session: Session,
    asked: Sequence[Messages | str],
    folder: Path,
    sampling: Sampling,
) -> list[list[Reply]]:
    """The replies to every prompt: those that the folder holds, and the rest sampled where a model is served."""
    from ..models.endpoint import Client
    from ..models.endpoint_replies import sampled

    client = Client(endpoint, "endpoint")
    session.say(
        f"Replies are sampled from {endpoint.model} at {endpoint.url}: the prompts are sent there. To be pairs of the "
        f"policy's own replies, it must be {session.recipe.in_words(session.recipe.model)}, which is not looked at."
    )
    template_kwargs = session.recipe.data.chat_template_kwargs
    # All that a server could set otherwise, as vLLM does from a model's generation config, is named.
    of_a_token = {**sampling.of_a_token(), "top_p": 1.0}
    sample = functools.partial(
        sampled, client, samples=sampling.samples, chat_template_kwargs=template_kwargs, **of_a_token
    )
    settings = {
        "endpoint": endpoint.url,
        "model": endpoint.model,
        "chat_template_kwargs": template_kwargs,
        **of_a_token,
    }
    before = _read_bill(folder, endpoint)
    try:
        return _sampled(session, asked, folder, sample, settings, sampling)
    finally:
        if client.bill.requests:
            _add_to_bill(folder, before, client.bill)
            session.say(f"The endpoint {client.bill.in_words()}.")


def _sampled(
    session: Session,
    asked: Sequence[Messages | str],
    folder: Path,
    sample: Callable[..., Any],
    settings: dict[str, Any],
    sampling: Sampling,
) -> list[list[Reply]]:
    """The replies to every prompt: those that the folder holds, and the rest as `sample` draws them."""
    from ..models.sampled_replies import sampled_replies

    with _gone_on_with(folder), Stage(session.console, "Sampling replies", unit="replies") as stage:
        return sampled_replies(
            folder,
            asked,
            sample,
            settings=settings,
            seed=sampling.seed,
            samples=sampling.samples,
            progress=stage.show,
        )


def _read_bill(folder: Path, endpoint: Endpoint) -> dict[str, Any]:
    """What the endpoint was asked for these replies, in all calls so far."""
    nothing = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    try:
        return json.loads((folder / "endpoint.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or damaged: it only counts
        return {"url": endpoint.url, "model": endpoint.model, **nothing}


def _add_to_bill(folder: Path, before: dict[str, Any], bill: Bill) -> None:
    added = {name: before[name] + getattr(bill, name) for name in ("requests", "prompt_tokens", "completion_tokens")}
    with contextlib.suppress(OSError):  # of a folder that cannot be written something else is said
        files.write_json(folder / "endpoint.json", before | added)


@contextlib.contextmanager
def _gone_on_with(folder: Path) -> Iterator[None]:
    """Ctrl-C, and an endpoint that gives up, leave what was sampled, and say so."""
    try:
        yield
    except (KeyboardInterrupt, RecipeError) as stopped:
        if not isinstance(stopped, UsageError):
            stopped.add_note(f"{folder} holds what was sampled; the same command goes on from there.")
        raise


def _room_behind(asked: Sequence[Messages | str], session: Session) -> int:
    """How long a reply may be, tokens: a pair that `max_length` cuts would teach to run on."""
    from ..models.generate import prompt_ids

    recipe = session.recipe
    if recipe.max_length is None:
        return LONGEST_REPLY
    tokenizer = session.tokenizer.tokenizer
    longest_prompt = max(len(prompt_ids(tokenizer, prompt, recipe.data.chat_template_kwargs)) for prompt in asked)
    room = recipe.max_length - longest_prompt
    if room < LEAST_ROOM:
        raise RecipeError(
            f"The longest prompt has {longest_prompt:,} tokens, and max_length={recipe.max_length:,} leaves {room} for "
            "a reply. Raise max_length, or leave that prompt out."
        )
    return min(room, LONGEST_REPLY)


def _write_pairs(
    folder: Path, recipe: Recipe, asked: Sequence[Messages | str], rows: list[dict[str, Any]], report: dict[str, Any]
) -> None:
    """Write train.jsonl, eval.jsonl and report.json, of which `report` becomes all."""
    share = recipe.data.eval if isinstance(recipe.data.eval, float) else HELD_OUT
    held_out_prompts = _held_out(asked, share)
    report["held_out_prompts"] = len(held_out_prompts)
    held_out = [row for row in rows if repr(row["prompt"]) in held_out_prompts]
    train = [row for row in rows if repr(row["prompt"]) not in held_out_prompts]
    report["train"] = len(train)
    report["eval"] = len(held_out)
    files.write_jsonl(folder / "train.jsonl", train)
    files.write_jsonl(folder / "eval.jsonl", held_out)
    files.write_json(folder / "report.json", report)


def _held_out(prompts: Sequence[Messages | str], share: float) -> set[str]:
    """The prompts whose pairs are held out: those with the smallest hashes, the same whatever is sampled."""
    wanted = max(1, round(share * len(prompts)))
    in_order = sorted((repr(prompt) for prompt in prompts), key=_hash)
    return set(in_order[:wanted])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def how_to_train_on(folder: Path, recipe: Recipe) -> str:
    """What stands behind the pairs that were made: how a run takes them."""
    if PREPARED in recipe.data.name:  # of such a recipe the command line changes no part
        return "The same command with --rounds 1 trains on them, too."
    return f"Train on them: dpo-recipes train {recipe.name} data.path={folder} data.train=train data.eval=eval"
