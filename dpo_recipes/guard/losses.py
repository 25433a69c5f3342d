"""Before anything is loaded: a loss of one's own goes through the conformance kit, with the recipe's own numbers."""

from ..errors import Finding
from ..losses.conformance import breaches, reads_beta
from ..recipe.recipe import Recipe


def loss_findings(recipe: Recipe) -> list[Finding]:
    """One finding for each plugin loss: what makes training impossible is a fail, what one should know a warning."""
    return [_finding(recipe, name) for name in recipe.plugins]


def _finding(recipe: Recipe, name: str) -> Finding:
    function, _ = recipe.plugins[name]
    numbers = recipe.numbers(function)
    broken = breaches(
        function,
        recipe.beta,
        numbers,
        alone=len(recipe.weights) == 1,
        same_start=recipe.reference is None,
    )
    sentences = [breach.sentence for breach in broken]
    if any(breach.stops for breach in broken):
        return Finding("fail", f"loss {name}", f"{'; '.join(sentences)}.")

    beta_was_given = "beta" in recipe.given
    if beta_was_given and not reads_beta(function, recipe.beta, numbers):
        sentences.append(f"beta={recipe.beta:g} does nothing in it, and only scales the rewards that are logged")
    if sentences:
        return Finding("warn", f"loss {name}", f"{'; '.join(sentences)}.")
    return Finding("pass", f"loss {name}", "passes the conformance kit")
