"""A recipe on this machine: its places, device, tokenizer and checked pairs, and the trainer that they make.

Every verb that looks at pairs or weights begins here: what `check` and `preview` show is what `train` trains on.

Leans on TRL 1.16: the errors that `DPOTrainer.__init__` raises.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..data.sources import files_of, is_path
from ..errors import Finding, RecipeError
from ..models.model_folder import base_of_adapter, refuse_absent_base
from ..progress import Stage
from ..recipe.choices import ORDER, Choice, with_choices
from ..recipe.dpo_arguments import dpo_arguments
from ..recipe.recipe import PREPARED, Recipe
from ..recipe.resolve import here, resolve
from ..runs.full_memory import is_out_of_memory
from ..sentences import print_line
from .checked_model import check_model, refuse_unusable_folders
from .checked_pairs import read_pairs
from .options import require_options, try_options
from .places import prepared, require, require_files
from .processes import main_first
from .tqdm_bars import quieten, shown_as_ours

if TYPE_CHECKING:
    from ..models.reference import Reference
    from .trainer import RecipeTrainer


# DPOConfig of a trainer that only looks: nothing is written, nothing sent, and nothing evaluated on the way.
LOOKS_ONLY: dict[str, Any] = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
    "push_to_hub": False,
}


class Session:
    """A recipe on this machine.

    Made, it knows where everything lies, the device, the settings and the tokenizer. `read_pairs()` adds the pairs
    and what is to be said of them, `make_trainer()` the trainer's reference.
    """

    # From read_pairs()
    train: Any  # datasets.Dataset, tokenised; of a stream, an IterableDataset
    eval: Any
    report: dict[str, Any]  # data.json; empty before
    findings: list[Finding]

    # From make_trainer()
    reference: Reference

    def __init__(self, recipe: Recipe, console: Console, *, with_pairs: bool = True, with_others: bool = False):
        """RecipeError for whatever cannot be had or does not work on this machine.

        `with_pairs=False`: the recipe's pairs will not be read, so that they need not be there. `with_others`: this may
        be one of several processes that train together.
        """
        resolve(recipe, here())  # what can be refused is refused before anything is loaded
        require_options(recipe.trl)
        self.recipe = recipe
        self.console = console
        self.report = {}
        self._configs: dict[str, Any] = {}
        self._find_places(with_pairs)
        refuse_unusable_folders(self)
        if recipe.data.reference is not None:
            # Imported here: it brings pyarrow.
            from .published_reference import Published

            Published(recipe.data.reference)  # which raises where there is nothing to be read

        with Stage(console, "Loading the libraries"):
            quieten()
            from ..models.device import device
            from ..models.tokenizer import load_tokenizer
        use_cpu = bool(recipe.trl.get("use_cpu"))
        self.device = device(self.say, use_cpu=use_cpu, with_others=with_others, name=recipe.name)
        self.settings = resolve(recipe, self.device)
        with Stage(console, "Loading the tokenizer"), shown_as_ours(console):
            self.tokenizer = load_tokenizer(recipe, self.model_path, self.say)
        self.ends = _end_tokens(self.tokenizer.tokenizer, self.model_path, recipe.revision)

    def take_processor(self) -> list[Choice]:
        """Take the model's processor in place of its tokenizer, as the pairs have images; what that decides.

        RecipeError where the model sees no images, or the recipe asks for what does not go with them.
        """
        from ..models.auto_class import reads_images_in_another_class
        from ..models.tokenizer import with_processor
        from .with_images import choices_for_images, refuse_with_images

        refuse_with_images(self.recipe)
        with Stage(self.console, "Loading the processor"), shown_as_ours(self.console):
            self.tokenizer = with_processor(self.recipe, self.model_path, self.tokenizer)
            if reads_images_in_another_class(self.config(self.model_path)):
                raise RecipeError(
                    f"The pairs have images, and {self.model_path!r} is loaded as its text part alone. Take another "
                    "vision-language model."
                )
            choices = choices_for_images(self)
        self.ends = _end_tokens(self.tokenizer.tokenizer, self.model_path, self.recipe.revision)
        self.recipe = with_choices(self.recipe, choices)
        self.settings = resolve(self.recipe, self.device)
        return choices

    @property
    def has_images(self) -> bool:
        return self.tokenizer.processor is not None

    def say(self, text: str) -> None:
        """Print a sentence: folded in a terminal, one line in a log."""
        print_line(self.console, text)

    def say_warnings(self, findings: Iterable[Finding]) -> None:
        """Print what the findings warn of."""
        for finding in findings:
            if finding.level == "warn":
                self.say(f"{finding.name}: {finding.text}")

    def _find_places(self, with_pairs: bool) -> None:
        """Resolve the names of models and data, and refuse those that cannot be had."""
        recipe = self.recipe
        if with_pairs:
            require_files([path for path in recipe.data.paths if PREPARED not in path])
        folder = main_first(functools.partial(prepared, recipe, self.console))

        def resolved(name: str) -> str:
            return os.path.expanduser(name.replace(PREPARED, str(folder)))

        self.model_path = _absolute(resolved(recipe.model))  # as an adapter made on it will name it
        self.reference_path = resolved(recipe.reference or "")  # empty where the reference is the start
        self.reference_adapter = ""  # the folder of an adapter on it
        base = base_of_adapter(self.reference_path) if self.reference_path else None
        if base is not None:
            self.reference_adapter, self.reference_path = self.reference_path, base
            whose = f"reference={self.reference_adapter!r} is an adapter of"
            refuse_absent_base(self.reference_adapter, base, whose)
        self.data_paths = {}
        if with_pairs:
            self.data_paths = {resolved(path): share for path, share in recipe.data.paths.items()}

        models = [path for path in (self.model_path, self.reference_path) if path]
        require(models, recipe.revision, list(self.data_paths), recipe.data.revision)
        eval_path = str(recipe.data.eval).partition("[")[0]
        if with_pairs and is_path(eval_path) and isinstance(recipe.data.eval, str):
            files_of(eval_path, "data.eval")  # which raises where it is not there

    def try_options(self) -> None:
        """Make of the options what can be made before the model: DPOConfig, the optimizer, the schedule."""
        with Stage(self.console, "Loading TRL"):
            from .trainer import config

        try_options(config(dpo_arguments(self.recipe, self.settings, os.curdir)), self.recipe.trl)

    def check_model(self, *, here: bool = True) -> None:
        """Refuse what the configurations, and the names in the files of weights, tell before a weight is read.

        RecipeError where the model, its adapter or its reference cannot be what the recipe says. `here`: it is to
        train on this machine, so that what it needs must be installed.
        """
        check_model(self, here)

    def read_pairs(self, *, all_held_out: bool = False) -> None:
        """Read, tokenise and judge the pairs. RecipeError where nothing can be judged; what was judged is a finding.

        `all_held_out`: nothing is trained on, so that all pairs are on both sides.
        """
        read_pairs(self, all_held_out)

    def positions(self) -> int | None:
        """How many tokens policy and reference reach, prompt and answer together; None where nothing limits them."""
        from ..models.limits import longest_usable

        reaches = [longest_usable(self.config(path)) for path in (self.model_path, self.reference_path) if path]
        return min([reach for reach in reaches if reach is not None], default=None)

    def config(self, path: str) -> Any:
        """The configuration of the model or of the reference; read once, as their folder may go while a run trains."""
        from transformers import AutoConfig

        from ..models.loading_errors import explained

        recipe = self.recipe
        # The revision is the model's; another model as the reference has none.
        revision = recipe.revision if path == self.model_path else None
        if path not in self._configs:
            options: dict[str, Any] = {"revision": revision, "trust_remote_code": recipe.trust_remote_code}
            with explained("model", path):
                self._configs[path] = AutoConfig.from_pretrained(path, **options)
        return self._configs[path]

    @property
    def auto_class(self) -> str:
        """The name of Transformers' class that loads the model."""
        from ..models.auto_class import auto_class

        return str(auto_class(self.config(self.model_path)).__name__)

    def on_pairs(self, train: Any, held_out: Any) -> Session:
        """This session with other tokenised pairs, such as a part of its own."""
        other = copy.copy(self)
        other.train = train
        other.eval = held_out
        return other

    def make_trainer(
        self,
        output: Path,
        callbacks: list[Any],
        *,
        kind: Callable[..., Any] | None = None,
        options: dict[str, Any] | None = None,
        **changes: Any,
    ) -> RecipeTrainer:
        """The trainer of this recipe, which writes checkpoints to `output`; `changes` go over its DPOConfig.

        In place of ours, `kind` makes another trainer of DPOTrainer's arguments, and in place of the recipe's,
        `options` are those of DPOConfig.
        """
        from transformers import PrinterCallback

        from ..models.adapter import peft_config
        from ..models.reference import Reference
        from ..models.tokenizer import need_embeddings
        from ..models.weights import load_weights
        from .trainer import RecipeTrainer, config

        recipe = self.recipe
        settings = self.settings
        tokenizer = self.tokenizer.tokenizer
        with Stage(self.console, "Loading and checking the model"), shown_as_ours(self.console):
            policy = load_weights(recipe, settings, self.model_path, say=self.say)
        need_embeddings(policy, tokenizer)

        ref_model = None  # in all other modes the policy's own weights serve as the reference
        if settings.loads_reference:
            ref_model = self.load_reference()

        if kind is None:
            kind = functools.partial(
                RecipeTrainer,
                recipe=recipe,
                settings=settings,
                say=self.say,
                console=self.console,
                cost_of_reading_twice=self.cost_of_reading_twice(),
            )
        if options is None:
            options = dpo_arguments(recipe, settings, str(output))
        try:
            with Stage(self.console, "Preparing the trainer"):
                trainer = kind(
                    model=policy,
                    ref_model=ref_model,
                    callbacks=callbacks,
                    args=config(options | changes),
                    train_dataset=self.train,
                    eval_dataset=self.eval,
                    processing_class=self.tokenizer.processor or tokenizer,
                    peft_config=peft_config(recipe.adapter),
                )
        except (ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise RecipeError(f"TRL refuses the recipe: {str(error).strip()}") from error
        except ImportError as error:
            raise RecipeError(f"A package that the recipe asks for is missing: {error}") from error
        except StopIteration:  # TRL looks at the first pair, which alone shows that a stream has none
            raise self._empty_stream() from None

        trainer.remove_callback(PrinterCallback)  # which prints every log; the bar shows them
        load = self.load_reference
        if not settings.precompute and trainer.ref_model is not None and settings.reference != "moving copy":
            load = functools.partial(trainer.accelerator.unwrap_model, trainer.ref_model)
        self.reference = Reference(trainer.model, settings, load)
        return trainer

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision that the model trains in."""
        import torch

        precision = self.settings.autocast
        if precision is None:
            yield
            return
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        with torch.autocast(self.settings.device, dtype=dtype):
            yield

    def load_reference(self) -> Any:
        """The reference as a model of its own: other weights, with their adapter on, or those of the start."""
        from ..models.adapter import with_adapter_in_place
        from ..models.weights import load_weights

        path = self.reference_path or self.model_path
        with Stage(self.console, "Loading and checking the reference"), shown_as_ours(self.console):
            model = load_weights(self.recipe, self.settings, path, trainable=False)
            if self.reference_adapter:
                model = with_adapter_in_place(model, self.reference_adapter)
        return model

    def cost_of_reading_twice(self) -> str:
        """What it costs to read pairs as TRL does, in a sentence; empty where tokens are not counted beforehand."""
        counted = self.report.get("train", {})
        if not counted.get("padded_tokens"):
            return ""
        # As they are drawn; by length within a step fewer are padding.
        at_most = "at most " if ORDER in self.recipe.reasons else ""
        return (
            f"That is {at_most}{counted['padded_tokens']:,} tokens an epoch, in place of {counted['shared_tokens']:,}."
        )

    def _empty_stream(self) -> RecipeError:
        reasons = [f"{reason}: {drop['count']:,}" for reason, drop in self.report["train"]["dropped"].items()]
        return RecipeError(
            f"No pair of the stream {self.recipe.data.name} ({self.recipe.data.train}) can be trained on. "
            f"{'; '.join(reasons) or 'It has no rows'}. Correct the rows, or name others with data.path or data.eval."
        )


def _absolute(name: str) -> str:
    """A folder's whole path, which is right from every working folder; a hub id as it is."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def _end_tokens(tokenizer: Any, model_path: str, revision: str | None) -> set[int]:
    """The ids that end a reply: the tokenizer's end token, and what ends a turn where that is another one."""
    from transformers import GenerationConfig

    ends = {tokenizer.eos_token_id}
    try:
        generation = GenerationConfig.from_pretrained(model_path, revision=revision or "main")
    except OSError:  # the model has no generation_config.json
        return ends

    turn_ends = generation.eos_token_id  # one id, several or none
    if isinstance(turn_ends, int):
        ends.add(turn_ends)
    elif turn_ends is not None:
        ends.update(turn_ends)
    return ends
