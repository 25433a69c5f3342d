"""The recipe: a frozen value that says which model, which data, which adapter, which loss and which numbers.

`__post_init__` may refuse, never change. Nothing heavy is imported, so that showing or refusing a recipe is quick.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from ..errors import UsageError, nearest
from ..losses.plugins import Loss
from ..losses.selection import function_of, name_of, own_numbers, refuse_impossible_losses
from ..losses.trl_losses import LIKELIHOOD_LOSSES, SFT, SMOOTHED_LOSSES, TRL_LOSSES
from .adapters import LoRA, QLoRA
from .data import Data
from .judges import JudgeEndpoint, RewardModel
from .trl_options import refuse_unusable_options
from .validation import POSITIVE, Limit, Value, at_least, at_most, not_below, parameters_of, refuse_another_signature

PREPARED = "{prepared}"  # in `model` and `data.path`: the folder that the recipe's `prepare` fills

# Rules of the guard about the log of a run, by name, and the levels at which they are told.
RULES = (
    "chosen_forgotten",
    "rejected_falls",
    "policy_runs_away",
    "margin_too_wide",
    "no_movement",
    "accuracy_too_early",
    "length_decides",
    "held_out_at_chance",
    "over_fitting",
    "epoch_jump",
    "gradient_spikes",
    "entropy_collapse",
)
RULE_LEVELS = ("off", "note", "warning", "stop")


# The limits of Recipe's fields.


def _is_chosen(loss: Any) -> bool:
    return loss != {}


def _is_seed(value: int) -> bool:
    return 0 <= value < 2**32  # what numpy takes


AT_LEAST_ONE_LOSS = Limit(_is_chosen, "at least one loss")
SEED = Limit(_is_seed, "in [0, 2**32)")

# Far outside all that is published, so that nothing but a slip is refused.
LEAST_BETA = not_below(1e-5, "below it policy and reference are hardly compared; published betas are 0.001 to 10")
LARGEST_BETA = at_most(1000, "above it the first differences of rounding decide; published betas are 0.001 to 10")
LARGEST_RATE = at_most(1, "one step would overwrite the weights; published learning rates are 5e-9 to 0.01")
LARGEST_BATCH = at_most(1_000_000, "it is the number of pairs in one optimiser step; published ones are 4 to 512")
LARGEST_SFT_WEIGHT = at_most(
    100, "it is added to the loss; published weights are 0.01 to 1, and loss='sft' is it alone"
)
MOST_EPOCHS = at_most(100, "published runs take 1 to 5; a longer one is asked for in steps, trl.max_steps")
MOST_ANSWERS = at_most(1000, "they tell the mean reward of a prompt to 3 % of its spread")
HIGHEST_TEMPERATURE = at_most(10, "any higher and every word is drawn as often as every other")
LONGEST = at_most(10_000_000, "no model reads more tokens; none switches truncation off")


@dataclass(frozen=True, kw_only=True)
class Recipe(Value):
    """Everything that decides the result of a run. Fields left at None are decided by the mode; `show` says how."""

    # Where the value came from: no fields, so that they do not take part when values compare. `from_where` sets them.
    source: ClassVar[Path | None] = None  # the file it was loaded from
    cli_keys: ClassVar[frozenset[str]] = frozenset()  # what the command line changed
    # For what was chosen for a device (choices.py), by dotted key.
    reasons: ClassVar[Mapping[str, str]] = MappingProxyType({})
    called: ClassVar[str | None] = None  # its name, where its file has another, as in a run folder

    model: str  # hub id or folder
    data: Data
    revision: str | None = None  # of the model and its tokenizer, so also of a reference that is its start
    adapter: LoRA | QLoRA | None = None  # None: full fine-tuning
    reference: str | None = None  # None: the start weights; else hub id or folder of another model

    # the objective
    loss: Annotated[str | dict[str | Callable[..., Any], float] | Callable[..., Any], AT_LEAST_ONE_LOSS] = "sigmoid"
    loss_args: dict[str, Any] = field(default_factory=dict)  # a plugin loss's own numbers
    # adds TRL's `sft` at this weight: the likelihood of the chosen side, which keeps it from being forgotten
    sft_weight: Annotated[float | None, POSITIVE, LARGEST_SFT_WEIGHT] = None
    beta: Annotated[float, POSITIVE, LEAST_BETA, LARGEST_BETA] = 0.1

    # the optimisation
    learning_rate: Annotated[float | None, POSITIVE, LARGEST_RATE] = None  # None: 5e-7 full, 5e-6 adapters
    global_batch_size: Annotated[int, at_least(1), LARGEST_BATCH] = 16  # pairs per optimiser step, over all devices
    # pairs per device and forward; None: chosen for the device, and where nothing is, the largest divisor up to 4
    micro_batch_size: Annotated[int | None, at_least(1)] = None
    num_train_epochs: Annotated[float, POSITIVE, MOST_EPOCHS] = 1.0
    max_length: Annotated[int | None, at_least(2), LONGEST] = 1024  # tokens, prompt plus completion
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None  # None: Transformers' choice
    # read each pair's prompt once, without padding: where the model can, never, or else not at all
    pair_sharing: Literal["auto", "off", "require"] = "auto"
    trust_remote_code: bool = False
    seed: Annotated[int, SEED] = 42

    # functions of the recipe file
    # reward(prompt, completion), a reward model or a judge: for the evaluation
    reward: Callable[[str, str], float] | RewardModel | JudgeEndpoint | None = None
    measures: dict[str, Callable[[str, str], float]] = field(default_factory=dict)  # more of these, averaged by name
    # answers of the policy to each held-out prompt, beside three times as many of the reference
    # None: 8 where the reward is a function, 4 where it is a model, and else 1 of either
    answers: Annotated[int | None, at_least(1), MOST_ANSWERS] = None
    # of these answers, by both; 1 is the models as they are, which is what the loss is about
    answers_temperature: Annotated[float, POSITIVE, HIGHEST_TEMPERATURE] = 1.0
    # rules of the guard: a level by name, "off" to ask it not at all; or rule(rows, run), one more of these
    rules: dict[str, str | Callable[..., Any]] = field(default_factory=dict)
    # A file of text that has nothing to do with the pairs, one a line; None: our own. Measured before and after.
    forgetting: str | None = None
    # Nats per token that the policy may move on that text; a run that has moved further ends with an error.
    forgetting_limit: Annotated[float | None, POSITIVE] = None
    # prepare(folder, seed): fills {prepared} on first use. One with a parameter `model` is told of another model there.
    prepare: Callable[..., None] | None = None

    trl: dict[str, Any] = field(default_factory=dict)  # any other DPOConfig field, in TRL's spelling

    def from_where(
        self,
        *,
        source: Path | None = None,
        cli_keys: frozenset[str] = frozenset(),
        called: str | None = None,
        reasons: Mapping[str, str] = MappingProxyType({}),
    ) -> Recipe:
        """An equal recipe that says where it came from."""
        recipe = copy.copy(self)
        # The dataclass is frozen.
        object.__setattr__(recipe, "source", source)
        object.__setattr__(recipe, "cli_keys", cli_keys)
        object.__setattr__(recipe, "called", called)
        object.__setattr__(recipe, "reasons", reasons)
        return recipe

    def evolve(self, *unset: str, **changes: Any) -> Recipe:
        """The same recipe, from where this one came, with some fields changed; `unset` return to their defaults."""
        changed = super().evolve(*unset, **changes)
        return changed.from_where(source=self.source, cli_keys=self.cli_keys, called=self.called, reasons=self.reasons)

    @property
    def name(self) -> str:
        if self.called:
            return self.called
        return self.source.stem if self.source else "recipe"

    @property
    def weights(self) -> dict[str | Callable[..., Any], float]:
        """Every loss with its weight, `sft_weight` among them; one loss alone has weight 1."""
        weights = dict(self.loss) if isinstance(self.loss, dict) else {self.loss: 1.0}
        if self.sft_weight is not None:
            weights[SFT] = self.sft_weight
        return weights

    @property
    def loss_names(self) -> set[str]:
        return {name_of(loss) for loss in self.weights}

    @property
    def trl_losses(self) -> dict[str, float]:
        """name -> weight of TRL's own losses."""
        return {name_of(loss): weight for loss, weight in self.weights.items() if loss in TRL_LOSSES}

    @property
    def plugins(self) -> dict[str, tuple[Loss, float]]:
        """name -> (function, weight) of the losses that are not TRL's."""
        plugins = {}
        for loss, weight in self.weights.items():
            function = function_of(loss)
            if function is not None:
                plugins[name_of(function)] = (function, weight)
        return plugins

    def numbers(self, plugin: Loss) -> dict[str, Any]:
        """The `loss_args` that this plugin takes."""
        return {name: value for name, value in self.loss_args.items() if name in own_numbers(plugin)}

    @property
    def _reference_is_precomputed(self) -> bool:
        """Whether the reference is no adapter's own, so that a second model is in memory unless it is read before."""
        return self.adapter is None or self.reference is not None

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference's log-probabilities are computed before training, or found where they were before.

        In one run of one epoch that costs what it costs in the steps, where the same forwards would be taken; whatever
        comes after it, another epoch or another run on the same pairs, has them for nothing. A reference that moves has
        no numbers to keep, and the pairs of a stream are not known beforehand.
        """
        if self.trl.get("sync_ref_model") or self.data.streaming:
            return False
        return self._reference_is_precomputed or bool(self.trl.get("precompute_ref_log_probs", True))

    @property
    def prepare_asks_for_the_model(self) -> bool:
        """Whether `prepare` has a parameter `model`, in which it is told of one that it does not make itself."""
        return self.prepare is not None and "model" in parameters_of(self.prepare)

    @property
    def checkpoints_are_paced(self) -> bool:
        """Whether no option says when checkpoints are written, so that it is by the time that a kill would cost."""
        return not {"save_strategy", "save_steps", "load_best_model_at_end"} & self.trl.keys()

    # What does not go together. The first refusal wins, so that the order below is the order of the messages.

    def refuse_contradictions(self) -> None:
        self._refuse_sft_twice()
        refuse_impossible_losses(self.weights, self.loss_args)
        refuse_unusable_options(self.trl, self.loss_names, self.precomputes_reference)
        self._refuse_precision()
        self._refuse_prepare()
        self._refuse_scores()
        self._refuse_rules()
        self._refuse_numbers_of_the_loss()
        self._refuse_idle_dropout()
        self._refuse_reference()
        self._refuse_noise()
        self._refuse_streaming()

    def _refuse_precision(self) -> None:
        if self.adapter is None and self.dtype in ("float16", "bfloat16"):
            raise UsageError(
                f"dtype={self.dtype!r} in full fine-tuning: 16-bit weights swallow small steps, 'auto' keeps 32 bit."
            )
        if isinstance(self.adapter, QLoRA) and self.dtype != "auto":
            raise UsageError(f"dtype={self.dtype!r} does nothing under QLoRA, which computes in bf16: delete it.")

    def _refuse_prepare(self) -> None:
        names_prepared = PREPARED in f"{self.model} {self.data.name} {self.reference}"
        if names_prepared != bool(self.prepare):
            raise UsageError(
                f"{PREPARED} in model, data.path or reference goes with a `prepare` that fills it: both or neither."
            )
        refuse_another_signature("prepare(folder, seed)", self.prepare, "folder", "seed")

    def _refuse_scores(self) -> None:
        if not isinstance(self.reward, Value):
            refuse_another_signature("reward(prompt, completion)", self.reward, "prompt", "completion")
        for name, measure in self.measures.items():
            _refuse_name_of_a_measure(name)
            refuse_another_signature(f"measures[{name!r}](prompt, completion)", measure, "prompt", "completion")

    def _refuse_sft_twice(self) -> None:
        if self.sft_weight is None:
            return
        if self.loss == SFT:
            raise UsageError(f"sft_weight={self.sft_weight:g} does nothing: loss='sft' is that term alone. Delete it.")
        if isinstance(self.loss, dict) and SFT in self.loss:
            raise UsageError(
                f"sft_weight={self.sft_weight:g} beside loss={{'sft': {self.loss[SFT]:g}, ...}}: the mix has that term "
                "already. Keep one of the two."
            )

    def _refuse_rules(self) -> None:
        for name, rule in self.rules.items():
            if callable(rule):
                _refuse_name_of_a_rule(name)
                refuse_another_signature(f"rules[{name!r}](rows, run)", rule, "rows", "run")
            elif name not in RULES:
                raise UsageError(
                    f"Recipe.rules has {name!r}, and there is no such rule.{nearest(name, RULES)} Known: "
                    f"{', '.join(RULES)}. One of your own is a function: rules={{{name!r}: function}}."
                )
            elif rule not in RULE_LEVELS:
                raise UsageError(
                    f"Recipe.rules[{name!r}]={rule!r} must be one of {', '.join(RULE_LEVELS)}."
                    f"{nearest(rule, RULE_LEVELS)}"
                )

    def _refuse_numbers_of_the_loss(self) -> None:
        if self.loss_names <= LIKELIHOOD_LOSSES and self.beta != 0.1:
            raise UsageError("beta does nothing: loss='sft' is plain likelihood.")
        if self.loss_names & SMOOTHED_LOSSES and not self.trl.get("label_smoothing"):
            raise UsageError("loss='exo_pair' needs trl.label_smoothing above 0; the EXO paper uses 0.001.")

    @property
    def max_steps(self) -> int | None:
        """The steps that decide the length of the run, in place of num_train_epochs; None where these decide."""
        return self.trl.get("max_steps")

    def in_words(self, name: str) -> str:
        """A model or data of this recipe as a sentence names it, such as `quickstart's own pairs`."""
        return name.replace(f"{PREPARED}/", f"{self.name}'s own ")

    def _refuse_idle_dropout(self) -> None:
        if self.adapter and self.adapter.dropout and self.trl.get("disable_dropout", True):
            raise UsageError(
                "adapter.dropout does nothing, as TRL disables all dropout, without trl={'disable_dropout': False}."
            )

    def _refuse_reference(self) -> None:
        moving, precompute = self.trl.get("sync_ref_model"), self.trl.get("precompute_ref_log_probs")
        if moving and (self.adapter or self.reference or self.reward or precompute):
            raise UsageError(
                "trl.sync_ref_model moves a copy: no adapter, reference, reward or precompute_ref_log_probs beside it."
            )
        if precompute is False and self._reference_is_precomputed and not moving:
            raise UsageError("trl.precompute_ref_log_probs=False would keep a second model in memory: delete it.")
        if self.data.reference is not None and not self.precomputes_reference:
            raise UsageError(
                f"data.reference={self.data.reference} holds log-probabilities from before training, and this run "
                "reads none: trl.sync_ref_model, trl.precompute_ref_log_probs=False and data.streaming each compute "
                "the reference in the step. Delete one of the two."
            )

    def _refuse_noise(self) -> None:
        """NEFTune disturbs every forward in training: of an adapter's reference too, and before the first step."""
        if self.trl.get("neftune_noise_alpha") and self.reference is None:
            raise UsageError(
                "trl.neftune_noise_alpha disturbs the policy and a reference that is its own start, each with other "
                "noise, so that DPO compares noise. Delete it, or name another model as the reference."
            )

    def _refuse_streaming(self) -> None:
        if not self.data.streaming:
            return
        if self.trl.get("train_sampling_strategy", "random") != "random":
            raise UsageError(
                f"trl.train_sampling_strategy={self.trl['train_sampling_strategy']!r} does nothing beside "
                "data.streaming, which reads the pairs in their order. Delete it."
            )
        if self.trl.get("dataloader_num_workers"):
            raise UsageError(
                "data.streaming counts what it drops in this process: no trl.dataloader_num_workers beside it."
            )
        precomputes = self._reference_is_precomputed or self.trl.get("precompute_ref_log_probs")
        if precomputes or self.max_steps is None:  # it has no length, and cannot be read whole beforehand
            raise UsageError(
                "data.streaming needs trl.max_steps, and a reference not computed beforehand: an adapter's own."
            )


def _refuse_name_of_a_measure(name: str) -> None:
    """A name that evaluation.json keeps for something else, or that a table cannot show."""
    if name.endswith(("_stderr", "_interval")):
        raise UsageError(
            f"measures[{name!r}]: a name that ends in _stderr or _interval stands for the error of another number. "
            "Choose another name."
        )
    if not name.strip() or not name.isprintable():
        raise UsageError(f"measures[{name!r}]: the name is shown in a table. Choose one that can be read.")


def _refuse_name_of_a_rule(name: str) -> None:
    if name in RULES:
        raise UsageError(f"rules[{name!r}]: the guard has a rule of that name. Give your function another one.")
    if not name.strip() or not name.isprintable():
        raise UsageError(f"rules[{name!r}]: the name is shown when the rule speaks. Choose one that can be read.")
