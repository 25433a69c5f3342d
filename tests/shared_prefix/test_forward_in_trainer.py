"""TRL's trainer on models that read pairs once, against bare TRL: the same losses, metrics, gradients and logs."""

from __future__ import annotations

import functools

import pytest
import torch
from datasets import Dataset
from making import make_pairs
from reading_pairs import gradients, keep_float64, off
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from dpo_recipes import Data, LoRA, QLoRA, Recipe
from dpo_recipes.losses.trl_losses import TRL_LOSSES
from dpo_recipes.models.adapter import peft_config
from dpo_recipes.models.weights import load_weights
from dpo_recipes.recipe.resolve import Device, resolve
from dpo_recipes.shared_prefix.forward import share


class Sharing(DPOTrainer):
    """TRL's trainer on models that read pairs once."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.share()

    def _precompute_ref_logps(self, *arguments):  # in TRL's own __init__
        self.share()
        return super()._precompute_ref_logps(*arguments)

    def share(self):
        self.said = getattr(self, "said", [])
        for model in filter(None, (self.model, self.ref_model)):
            base = model.get_base_model() if hasattr(model, "peft_config") else model
            share(base, require=True, say=self.said.append)


def trainer(cls, folder, tmp_path, model=None, adapter=None, **options):
    """A trainer of 6 + 6 pairs whose policy is some way from its reference."""
    options = {
        "max_length": 96,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 6,
        "bf16": False,
    } | options
    args = DPOConfig(
        output_dir=str(tmp_path / cls.__name__),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        per_device_eval_batch_size=3,
        loss_type=options.pop("loss_type", ["sigmoid"]),
        **options,
    )
    made = cls(
        model=model or AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(make_pairs(6)),
        eval_dataset=Dataset.from_list(make_pairs(6, seed=9)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=peft_config(adapter),
    )
    noise = torch.Generator().manual_seed(4)
    for parameter in made.model.parameters():
        if parameter.requires_grad:
            shift = torch.randn(parameter.shape, generator=noise).to(parameter.dtype)
            parameter.data += 0.02 * shift
    return made


def both(folder, tmp_path, model=lambda: None, **options):
    return [trainer(cls, folder, tmp_path, model(), **options) for cls in (DPOTrainer, Sharing)]


def batch_of(made) -> dict:
    """All six training pairs."""
    return made.data_collator([made.train_dataset[i] for i in range(6)])


def losses_and_gradients(made) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss and metrics, gradients) of one batch."""
    made.model.train()
    made._metrics["train"].clear()
    loss = made.compute_loss(made.model, batch_of(made))
    loss.backward()
    metrics = [values[-1] for _, values in sorted(made._metrics["train"].items())]
    return torch.tensor([loss.item(), *metrics], dtype=torch.float64), gradients(made.model)


def assert_same(bare, mine):
    their_numbers, their_gradient = losses_and_gradients(bare)
    our_numbers, our_gradient = losses_and_gradients(mine)
    assert len(their_numbers) > 8 and their_gradient.norm() > 0
    torch.testing.assert_close(our_numbers, their_numbers, rtol=5e-6, atol=2e-6)
    assert off(our_gradient, their_gradient) <= 5e-6


def compute(made, loss: str) -> None:
    """Let a trainer compute one loss, and nothing else."""
    made.loss_types = [loss]
    made.loss_weights = [1.0]
    made.label_smoothing = 0.1


@pytest.mark.slow
def test_all_of_trls_losses_in_float64(tiny, tmp_path, monkeypatch):
    """What is the same maths agrees to the digits of the arithmetic, whatever the loss makes of a margin."""

    def model():
        return AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float64)

    keep_float64(monkeypatch, model())
    bare, mine = both(tiny(), tmp_path, model)
    for loss in TRL_LOSSES:
        compute(bare, loss)
        compute(mine, loss)
        their_numbers, their_gradient = losses_and_gradients(bare)
        our_numbers, our_gradient = losses_and_gradients(mine)
        torch.testing.assert_close(our_numbers, their_numbers, rtol=1e-10, atol=1e-10)
        assert off(our_gradient, their_gradient) <= 1e-10, loss
    assert len(TRL_LOSSES) == 15


def logps(made, model) -> torch.Tensor:
    """(12,): the log-probability of every answer, chosen first, in nats."""
    with torch.no_grad():
        return torch.cat(made.compute_ref_log_probs(model, batch_of(made)))


def gradient_beside(made, reference: torch.Tensor) -> torch.Tensor:
    """The gradient of one batch beside given log-probabilities of the reference."""
    chosen, rejected = reference.chunk(2)
    inputs = batch_of(made) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    made.model.train()
    made.precompute_ref_logps = True  # "the batch carries the reference"
    made.compute_loss(made.model, inputs).backward()
    made.precompute_ref_logps = False
    return gradients(made.model)


@pytest.mark.slow
def test_all_of_trls_losses_in_float32(tiny, tmp_path):
    """The losses and metrics agree, and so do the gradients at the same margins.

    An answer has about -100 nats, a sum whose last bit in float32 is 8e-6 to 2e-5 nats, and which bit that is depends
    on the order of summation: TRL's own sums move by it when a batch is padded further. A loss may blow it up: where
    every margin moves by one such bit, TRL's gradient of `discopop` moves by 7e-5 of its norm (beta / tau = 2, in a
    sigmoid), of `sppo_hard` by 4e-6, and of most by 1e-6. That is no fact about reading pairs once. So the
    bare policy is compared at our margins: its reference, in float64 where the shift has a place, makes up for what
    the two sums differ by.
    """
    bare, mine = both(tiny(), tmp_path)
    for loss in TRL_LOSSES:
        compute(bare, loss)
        compute(mine, loss)
        assert_same_at_the_same_margins(bare, mine)
    assert len(TRL_LOSSES) == 15


def test_a_divergence_of_another_kind(tiny, tmp_path):
    """Whose gradient in float32 is 8e-6 from the truth in TRL's own forward, for the bits that margins are off by."""
    assert_same_at_the_same_margins(*both(tiny(), tmp_path, f_divergence_type="js_divergence"))


def assert_same_at_the_same_margins(bare, mine):
    reference = logps(bare, bare.ref_model)
    theirs, ours = logps(bare, bare.model), logps(mine, mine.model)
    last_bit = torch.finfo(torch.float32).eps * theirs.abs()
    assert ((ours - theirs).abs() <= 4 * last_bit).all()
    shift = ours.double() - theirs.double()

    their_numbers, _ = losses_and_gradients(bare)
    our_numbers, _ = losses_and_gradients(mine)
    assert len(their_numbers) > 8
    torch.testing.assert_close(our_numbers, their_numbers, rtol=5e-6, atol=2e-6)

    their_gradient = gradient_beside(bare, reference.double() - shift)
    our_gradient = gradient_beside(mine, reference.double())
    assert their_gradient.norm() > 0
    assert off(our_gradient, their_gradient) <= 5e-6, mine.loss_types


OPTIONS = {
    "ld_alpha": {"ld_alpha": 0.3},
    "use_weighting": {"use_weighting": True},
    "mix": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "cut": {"max_length": 70},
    "cut from the left": {"max_length": 60, "truncation_mode": "keep_end"},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "LoRA": {"adapter": LoRA(r=4)},
    "LoRA, checkpointing": {"adapter": LoRA(r=4), "gradient_checkpointing": True},
    "DoRA": {"adapter": LoRA(r=4, use_dora=True)},
}


@pytest.mark.filterwarnings("ignore:.*keep_end.*deprecated:FutureWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(tiny, tmp_path, options):
    assert_same(*both(tiny(), tmp_path, **options))


def test_qlora(tiny, tmp_path):
    folder = tiny(hidden_size=64, intermediate_size=64)
    recipe = Recipe(model=str(folder), data=Data("unused"), adapter=QLoRA(r=4))
    make = functools.partial(load_weights, recipe, resolve(recipe, Device()), str(folder))
    bare, mine = both(folder, tmp_path, make, adapter=recipe.adapter)
    (theirs, their_gradient), (ours, our_gradient) = losses_and_gradients(bare), losses_and_gradients(mine)
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)  # bf16 is what 4-bit weights compute in
    assert off(our_gradient, their_gradient) < 0.05 and "read once" in mine.said[0]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, LoRA(r=4)], ids=["full", "LoRA"])
def test_autocast(tiny, tmp_path, adapter):
    """Full: accelerate has wrapped the reference before it is shared, the policy it wraps afterwards."""
    numbers = []
    for made in both(tiny(), tmp_path, adapter=adapter, bf16=True, max_steps=2, gradient_checkpointing=True):
        made.train()
        first, second = made.state.log_history[:2]
        numbers.append([first["loss"], first["logps/chosen"], second["loss"], second["logps/chosen"]])
    torch.testing.assert_close(*map(torch.tensor, reversed(numbers)), rtol=2e-3, atol=2e-2)
    models = 1 if adapter else 2  # without an adapter the reference is a model of its own
    assert all("read once" in line for line in made.said) and len(made.said) == models


def without_times(log: dict) -> dict:
    skipped = ("runtime", "per_second", "flos")
    return {name: value for name, value in log.items() if not any(word in name for word in skipped)}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, LoRA(r=4)], ids=["full", "LoRA"])
def test_training_and_evaluation_log_the_same_numbers(tiny, tmp_path, adapter):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 4, "optim": "sgd"}
    bare, mine = both(
        tiny(),
        tmp_path,
        adapter=adapter,
        learning_rate=0.1,
        gradient_checkpointing=True,
        precompute_ref_log_probs=adapter is None,
        **options,
    )
    if adapter is None:
        columns = []
        for made in (bare, mine):
            logps = [*made.train_dataset["ref_chosen_logps"], *made.eval_dataset["ref_rejected_logps"]]
            columns.append(torch.tensor(logps))
        assert off(*columns) <= 5e-6
    for made in (bare, mine):
        made.train()
        made.evaluate()
    logs_of_bare = [without_times(log) for log in bare.state.log_history]
    logs = [without_times(log) for log in mine.state.log_history]
    assert [log.keys() for log in logs_of_bare] == [log.keys() for log in logs] and len(logs) == 6
    for theirs, ours in zip(logs_of_bare, logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert len(mine.said) == 1
