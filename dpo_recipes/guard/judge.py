"""Asks the rules at every log of a run, and tells what they see: each once, and again where it has become worse."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..errors import RecipeError
from ..recipe.recipe import Recipe
from ..recipe.resolve import Settings
from .own_rules import LEVELS, OWN_LEVEL, own_rules_of, own_sign, rules_of
from .remembering import Remembering
from .trends import KnownOfRun, Level, Sign

WORSE = 3.0  # times the amount at which a rule was told last


class Observation(NamedTuple):
    """What a rule has seen, as metrics.jsonl has it."""

    step: int
    rule: str
    level: Level
    seen: str
    advice: str

    def sentence(self) -> str:
        """As whoever watches the run reads it."""
        return f"{self.level.capitalize()} at step {self.step:,}, {self.rule}: {self.seen} {self.advice}".strip()


class Judge(Remembering):
    """Keeps the log of a run, asks every rule after each row, and stops the run where a rule of level `stop` speaks."""

    def __init__(
        self, recipe: Recipe, settings: Settings, held_out_pairs: int, tell: Callable[[Observation], None]
    ) -> None:
        """`tell` is called with each observation, when it is made."""
        self.recipe = recipe
        self.settings = settings
        self.held_out_pairs = held_out_pairs
        self.tell = tell
        self.rows: list[dict[str, Any]] = []
        self.observations: list[Observation] = []
        self._rules = rules_of(recipe)
        self._own_rules = own_rules_of(recipe)
        self._told: dict[str, tuple[Level, float]] = {}  # rule -> the level and the amount at which it was told last
        self._run: KnownOfRun | None = None  # known when training begins

    def go_on(self, rows: list[dict[str, Any]]) -> None:
        """Take the rows of metrics.jsonl of a run that goes on, from before the step where it does."""
        self.rows = [row for row in rows if "rule" not in row]
        self.observations = [Observation(**row) for row in rows if "rule" in row]

    def remembered(self) -> dict[str, Any]:
        return {"told": {rule: list(told) for rule, told in self._told.items()}}

    def remember(self, values: dict[str, Any]) -> None:
        self._told = {rule: (level, amount) for rule, (level, amount) in values["told"].items()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._run = KnownOfRun(
            steps=state.max_steps,
            pairs_per_step=self.recipe.global_batch_size,
            held_out_pairs=self.held_out_pairs,
            beta=self.recipe.beta,
            learning_rate=self.settings.learning_rate,
            losses=tuple(sorted(self.recipe.loss_names)),
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        self.rows.append({"step": state.global_step, **logs})
        if self._run is None:  # the evaluation before training
            return
        for rule, level, sign in self._signs(self._run):
            if self._is_news(rule, level, sign):
                self._observe(Observation(state.global_step, rule, level, sign.seen, sign.advice), sign.amount)
                is_over = state.global_step >= state.max_steps  # nothing is left to be stopped
                if level == "stop" and not is_over:
                    stops = f"The rule {rule} stops the run at step {state.global_step:,}"
                    raise RecipeError(f"{stops}: {sign.seen} {sign.advice}".strip())

    def _signs(self, run: KnownOfRun) -> Iterator[tuple[str, Level, Sign]]:
        """(rule, level, sign) of every rule that has something to say."""
        for name, (level, rule) in self._rules.items():
            sign = rule(self.rows, run)
            if sign is not None:
                yield name, level, sign
        for name, function in list(self._own_rules.items()):
            try:
                said = own_sign(name, function, self.rows, run)
            except RecipeError as error:
                del self._own_rules[name]  # a mistake in it is no reason to lose the run
                said = OWN_LEVEL, Sign(f"{error} It is not asked again.", "")
            if said is not None:
                yield name, *said

    def _is_news(self, rule: str, level: Level, sign: Sign) -> bool:
        if rule not in self._told:
            return True
        told_level, told_amount = self._told[rule]
        return LEVELS.index(level) > LEVELS.index(told_level) or sign.amount >= WORSE * told_amount

    def _observe(self, observation: Observation, amount: float) -> None:
        self._told[observation.rule] = (observation.level, amount)
        self.observations.append(observation)
        self.tell(observation)
