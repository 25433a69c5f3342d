"""A recipe on this machine: its places, device, tokenizer and checked pairs, and the trainer that they make.

Every verb that looks at pairs or weights begins here: what `check` and `preview` show is what `train` trains on.

Leans on TRL 1.16: the errors that `DPOTrainer.__init__` raises, and the bars that it shows.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..data.sources import UNWRITABLE
from ..errors import Finding, RecipeError
from ..recipe.dpo_arguments import dpo_arguments
from ..recipe.recipe import PREPARED, Recipe
from ..recipe.resolve import here, resolve
from . import places as hub

SMALL = 20_000_000  # bytes of a file that is read, tokenised and compared within seconds


class Start:
    """What is known before the pairs are read; `pairs()` adds `train`, `eval`, `report` and `findings`."""

    train: Any  # datasets.Dataset, tokenised
    eval: Any
    report: dict[str, Any]  # data.json
    findings: list[Finding]

    def __init__(self, recipe: Recipe, console: Console):
        resolve(recipe, here())  # what can be refused is refused before anything is loaded
        folder = hub.prepared(recipe, console)

        def place(text: str) -> str:
            return os.path.expanduser(text.replace(PREPARED, str(folder)))

        self.recipe, self.console = recipe, console
        self.model_path, self.reference_path = place(recipe.model), place(recipe.reference or "")
        self.paths = {place(path): share for path, share in recipe.data.paths.items()}
        models = [path for path in (self.model_path, self.reference_path) if path]
        hub.require(models, recipe.revision, list(self.paths), recipe.data.revision)
        with console.status("loading the libraries"):
            # bitsandbytes announces an optional kernel that is not installed, at every import on a CPU.
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
            import datasets
            from transformers import GenerationConfig
            from transformers.utils.logging import disable_progress_bar

            from ..models.device import device
            from ..models.tokenizer import load_tokenizer

            disable_progress_bar()  # of loading shards, which is quick or has a download bar
            watched = console.is_terminal or console.is_jupyter
            if not watched or all(os.path.exists(p) and os.path.getsize(p) < SMALL for p in self.paths):
                datasets.disable_progress_bars()
            if not watched:
                os.environ["TQDM_DISABLE"] = "1"  # read by TRL for the reference pass
        self.device = device(self.say, use_cpu=bool(recipe.trl.get("use_cpu")))
        self.settings = resolve(recipe, self.device)
        self.tokenizer = load_tokenizer(recipe, self.model_path, self.say)
        self.ends = {self.tokenizer.tokenizer.eos_token_id}
        with contextlib.suppress(OSError):  # what ends a turn stands there, where it is not the tokenizer's end token
            own = GenerationConfig.from_pretrained(self.model_path, revision=recipe.revision or "main").eos_token_id
            self.ends |= {*(own if isinstance(own, list) else [own])} - {None}

    def say(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=not self.console.is_terminal)  # one line in a log

    def pairs(self) -> None:
        """Read, tokenise and judge the pairs. RecipeError where nothing can be judged; what was judged is a finding."""
        try:
            with _interruptible():
                self._pairs()
        except OSError as error:
            if error.errno in UNWRITABLE:
                where = "HF_DATASETS_CACHE names another place"
                raise RecipeError(f"The pairs cannot be kept in the cache of data sets: {error}. {where}.") from error
            ways = "Connect and run again, or name a local file: data.path=/path/to/pairs.jsonl"
            raise RecipeError(f"The data set {self.recipe.data.name} cannot be read: {error}. {ways}") from error

    def _pairs(self) -> None:
        from ..data import preference_dataset as data
        from ..data import tokenize as tokens
        from ..data.chat_template import template_findings

        recipe, own = self.recipe, self.recipe.data
        cores = recipe.trl.get("dataset_num_proc")
        read = data.read(own, self.paths, num_proc=cores)
        template = None if read.text else self.tokenizer.tokenizer.chat_template
        if not read.text and template is None:
            raise RecipeError(
                f"The data are conversations, and the tokenizer of {recipe.model!r} has no chat template to render "
                "them. Ways out: an instruct model, data.chat_template= in Jinja, or data.format=text: plain strings."
            )
        self.report = read.report
        self.findings = [Finding("pass", "pairs", note) for note in read.report["notes"]]
        self.findings += template_findings(template, own.chat_template_kwargs)
        for split, seen in (("train", self.report["train"]), ("eval", self.report["eval"])):
            rows, part = tokens.prepare(
                getattr(read, split), self.tokenizer.tokenizer, text=read.text, max_length=recipe.max_length,
                ends=self.ends, drop_truncated=own.drop_truncated, num_proc=cores, split=split,
                micro_batch_size=self.settings.micro_batch_size, seed=recipe.seed,
                dropped=seen["dropped"],
            )  # fmt: skip
            setattr(self, split, rows)
            seen |= {**part, "kept": len(rows)} if "pairs" in part else {}
            judged = {why: drop for why, drop in seen["dropped"].items() if why not in data.HARMLESS}
            limits: dict[str, Any] = {"allow": own.allow, "max_dropped": own.max_dropped}
            self.findings += tokens.rules(seen | {"dropped": judged}, split, max_length=recipe.max_length, **limits)
        swapped = self.report.get("contradictions") or {"count": 0, "rows": []}
        if n := swapped["count"]:
            many = n > own.max_dropped * len(self.train) and "contradictions" not in own.allow
            what = f"{n:,} train pairs stand in the data the other way round too: rows {', '.join(swapped['rows'])} ..."
            out = "Keep one of each" + (", or accept it: data.allow=['contradictions']." if many else ".")
            self.findings.append(Finding("fail" if many else "warn", "contradictions", f"{what} {out}"))
        digest = template and hashlib.sha256(f"{template}{own.chat_template_kwargs}".encode()).hexdigest()
        self.report |= {"text": read.text, "template_sha256": digest}

    def trainer(self, output: Path, callbacks: list[Any], **changes: Any) -> Any:
        """The RecipeTrainer of this recipe; `changes` go over its DPOConfig."""
        from transformers import PrinterCallback

        from ..models.adapter import peft_config
        from ..models.reference import Reference
        from ..models.tokenizer import need_embeddings
        from ..models.weights import load_weights
        from .trainer import RecipeTrainer, config

        recipe, settings = self.recipe, self.settings
        with self.console.status("loading the model"):
            policy = load_weights(recipe, settings, self.model_path, say=self.say)
        need_embeddings(policy, self.tokenizer.tokenizer)
        origin = self.reference_path or self.model_path
        load_reference = functools.partial(load_weights, recipe, settings, origin, trainable=False)
        second = load_reference() if settings.reference in ("other model", "moving copy") else None
        try:
            trainer = RecipeTrainer(
                recipe=recipe, settings=settings, say=self.say, model=policy, ref_model=second, callbacks=callbacks,
                args=config(dpo_arguments(recipe, settings, str(output)) | changes), train_dataset=self.train,
                eval_dataset=self.eval, processing_class=self.tokenizer.tokenizer,
                peft_config=peft_config(recipe.adapter),
            )  # fmt: skip
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise RecipeError(f"TRL refuses the recipe: {str(error).strip()}") from error
        except ImportError as error:
            raise RecipeError(f"A package that the recipe asks for is missing: {error}") from error
        trainer.remove_callback(PrinterCallback)
        self.reference = Reference(trainer.model, settings, load_reference)
        return trainer


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends worker processes without a traceback each, and stays Ctrl-C whatever it breaks in this one."""
    parent, asked = os.getpid(), list[int]()

    def interrupted(number: int, frame: Any) -> None:
        if os.getpid() != parent:
            os._exit(130)
        asked.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    except Exception:
        if asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
