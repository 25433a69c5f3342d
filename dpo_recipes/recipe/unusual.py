"""Values that are allowed and far from all that has been published: mostly slips, such as a rate of another method.

The published values are those of the papers, of TRL's documentation, of the alignment handbook, Tulu 3, SmolLM2 and
SmolLM3, SimPO, open-instruct, torchtune, LLaMA-Factory, Unsloth and the smol course.
"""

from __future__ import annotations

import math

from ..errors import Finding
from ..losses.plugins import PLUGIN_LOSSES
from ..losses.trl_losses import TRL_LOSSES, USUAL_BETA, Usual
from .adapters import LoRA
from .recipe import Recipe

# Optimizers whose learning rates are like AdamW's. Of others, such as sgd or lion, no usual rate is known here.
LIKE_ADAMW = ("adamw_torch", "adamw_apex", "adamw_8bit", "adamw_bnb", "adamw_anyprecision", "paged_adamw", "rmsprop")
MOST_USUAL_EPOCHS = 10  # published runs take 1 to 5


# Full fine-tuning: Tulu 3 70B and APO at the low end, the smol course's SmolLM2-135M at the high one.
FULL = Usual(2e-8, 1e-4, "2e-07 to 5e-05, most of them 5e-07 or 1e-06")
# Adapters: the first Zephyr recipe and Notus at the low end, torchtune at the high one.
ADAPTER = Usual(5e-8, 5e-3, "5e-07 to 5e-04, most of them 5e-06")

# alpha / r, or alpha / sqrt(r) under rsLoRA. Published are 0.25 to 2; an alpha of 32 at any rank is common too.
LEAST_USUAL_SCALE, MOST_USUAL_SCALE = 1 / 32, 32


def unusual_findings(recipe: Recipe) -> list[Finding]:
    """A warning for each value of which nothing like it has been published."""
    findings = []
    for name, text in (
        ("learning_rate", _learning_rate(recipe)),
        ("beta", _beta(recipe)),
        ("adapter.alpha", _scale(recipe.adapter)),
        ("num_train_epochs", _epochs(recipe)),
    ):
        if text:
            findings.append(Finding("warn", name, text))
    return findings


def _learning_rate(recipe: Recipe) -> str:
    rate = recipe.learning_rate
    optimizer = recipe.trl.get("optim", "adamw_torch")
    if rate is None or not str(optimizer).startswith(LIKE_ADAMW):
        return ""

    method, usual = ("full fine-tuning", FULL) if recipe.adapter is None else ("an adapter", ADAPTER)
    if rate > usual.most:
        consequence = "So high a rate soon ends in broken text."
    elif rate < usual.least:
        consequence = "At so low a rate next to nothing is learned."
    else:
        return ""
    return f"{rate:g} is unusual for {method}: published rates are {usual.published}. {consequence}"


def _beta(recipe: Recipe) -> str:
    """Of the first loss for which it is unusual; of a function of the user's own nothing is known."""
    for loss in sorted(recipe.loss_names):
        known = TRL_LOSSES.get(loss)
        if known is not None and known.compares:
            usual = known.usual_beta
        elif loss in PLUGIN_LOSSES:
            usual = USUAL_BETA
        else:
            continue
        if recipe.beta > usual.most:
            consequence = "So high, it holds the policy at its reference."
        elif recipe.beta < usual.least:
            consequence = "So low, it lets the policy drift far from its reference."
        else:
            continue
        return f"{recipe.beta:g} is unusual for loss={loss!r}: published are {usual.published}. {consequence}"
    return ""


def _scale(adapter: LoRA | None) -> str:
    if adapter is None or adapter.alpha is None or adapter.continue_from:
        return ""
    width = math.sqrt(adapter.r) if adapter.use_rslora else adapter.r
    scale = adapter.alpha / width
    if LEAST_USUAL_SCALE <= scale <= MOST_USUAL_SCALE:
        return ""
    divisor = f"sqrt(adapter.r={adapter.r})" if adapter.use_rslora else f"adapter.r={adapter.r}"
    consequence = "Its steps are that much larger." if scale > 1 else "It hardly reaches the output."
    return (
        f"{adapter.alpha} over {divisor} multiplies what the adapter adds by {scale:.3g}: published are 0.25 to 2. "
        f"{consequence}"
    )


def _epochs(recipe: Recipe) -> str:
    if recipe.num_train_epochs <= MOST_USUAL_EPOCHS or recipe.max_steps is not None:  # which decides the length instead
        return ""
    return (
        f"{recipe.num_train_epochs:g} is unusual: published runs take 1 to 5. Pairs seen often are learned by heart, "
        "and the held-out loss rises."
    )
