"""A few pairs as the model sees them: special tokens, the border of prompt and answer, and what max_length cuts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from ..formats.image_marks import IMAGE_TOKENS, IMAGES
from ..formats.pair_weights import WEIGHT
from ..recipe.recipe import Recipe
from ..training.session import Session

if TYPE_CHECKING:
    from ..data.image_pairs import ImageReader

OF_TEMPLATE = ("template", "rendering", "system")  # findings of what a chat template does to the texts
LEGEND = "▶ an answer begins, which is what is learned   ↵ a line ends"


class Drawn(NamedTuple):
    """How a part of a pair is drawn."""

    style: str
    characters: int  # the most that are drawn of it; of a longer text, the two ends


PROMPT = Drawn("cyan", 1500)
SIDES = {"chosen": Drawn("green", 1500), "rejected": Drawn("yellow", 1500)}
CUT = Drawn("dim strike", 240)

# What str.translate draws for a control character. None gets through, such as an escape sequence's first: those of
# ASCII have a sign of their own in Unicode, 0x2400 above them, and the others (DEL and C1) are replaced.
SIGNS: dict[int, str] = {code: chr(0x2400 + code) for code in range(32)}
SIGNS |= dict.fromkeys(range(127, 160), "\ufffd")
SIGNS |= {ord("\n"): "↵\n", ord("\t"): "→\t"}  # a newline and a tab stay what they are, behind their signs


def preview(recipe: Recipe, *, count: int = 3, console: Console | None = None) -> dict[str, Any]:
    """{"pairs", "findings"}: `decode_pairs` of the first train pairs that a recipe would train on, which are drawn, and
    what is to be said of them: what the chat template does, and what would stop a run.

    RecipeError where the recipe or its pairs cannot be used.
    """
    console = console or Console()
    session = Session(recipe, console)
    session.read_pairs()

    tokenizer = session.tokenizer.tokenizer
    # Imported here: it brings pyarrow.
    from ..data.image_pairs import ImageReader

    images = ImageReader(session.tokenizer.processor) if session.has_images else None
    pairs = decode_pairs(session.train, tokenizer, recipe.max_length, count, images)
    draw_pairs(pairs, tokenizer, recipe.max_length, console)
    findings = [finding for finding in session.findings if finding.level == "fail" or finding.name in OF_TEMPLATE]
    return {"pairs": pairs, "findings": findings}


def decode_pairs(
    pairs: Iterable[Any], tokenizer: Any, max_length: int | None, count: int, images: ImageReader | None = None
) -> list[dict[str, Any]]:
    """The first tokenised pairs as text: row, weight, prompt, prompt_tokens, and what is kept and cut of each side.

    An image is words in the prompt, such as [image 640x480], where `images` is the processor that reads it.

    A side is {"kept", "cut", "tokens", "cut_tokens"}; its `tokens` are all that it has, with those that are cut.
    """
    decoded = []
    for number, pair in enumerate(islice(pairs, count)):
        prompt_ids = pair["prompt_ids"]
        image_tokens = pair.get(IMAGE_TOKENS, 0)
        room = None if max_length is None else max_length - image_tokens
        prompt = tokenizer.decode(prompt_ids)
        if images is not None:
            prompt = images.with_words(prompt, pair[IMAGES] or [])
        decoded.append(
            {
                "row": pair.get("row", str(number)),
                "weight": pair.get(WEIGHT, 1.0),
                "prompt": prompt,
                "prompt_tokens": len(prompt_ids) + image_tokens,
                "chosen": _decode_side(prompt_ids, pair["chosen_ids"], tokenizer, room),
                "rejected": _decode_side(prompt_ids, pair["rejected_ids"], tokenizer, room),
            }
        )
    return decoded


def _decode_side(prompt_ids: list[int], side_ids: list[int], tokenizer: Any, max_length: int | None) -> dict[str, Any]:
    ids = prompt_ids + side_ids
    end = len(ids) if max_length is None else max(max_length, len(prompt_ids))

    # One text is cut in three, since a decoder may drop the space before the first token that it is given.
    text = tokenizer.decode(ids)
    prompt_characters = len(tokenizer.decode(prompt_ids))
    kept_characters = len(tokenizer.decode(ids[:end]))
    return {
        "kept": text[prompt_characters:kept_characters],
        "cut": text[kept_characters:],
        "tokens": len(side_ids),
        "cut_tokens": len(ids[end:]),
    }


def draw_pairs(pairs: Iterable[dict[str, Any]], tokenizer: Any, max_length: int | None, console: Console) -> None:
    """Draw decoded pairs. Signs carry the meaning, and it reads without colour; nothing in the data is markup."""
    added_tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    special_tokens = {*tokenizer.all_special_tokens, *added_tokens}

    for pair in pairs:
        tokens = (
            f"prompt {pair['prompt_tokens']:,}, chosen {pair['chosen']['tokens']:,}, "
            f"rejected {pair['rejected']['tokens']:,} tokens"
        )
        if pair["weight"] != 1:
            tokens += f", weight {pair['weight']:g}"
        console.print(Rule(Text(f"row {pair['row']}: {tokens}"), align="left"))
        text = _pair_text(pair, max_length)
        text.highlight_words(special_tokens, "bold")
        console.print(text, soft_wrap=not console.is_terminal)  # in a pipe, a line stays one
    console.print(LEGEND, style="dim")


def _pair_text(pair: dict[str, Any], max_length: int | None) -> Text:
    text = Text()  # without a style, which would be that of all its parts
    text.append_text(_part_text(pair["prompt"], PROMPT))
    for name, drawn in SIDES.items():
        side = pair[name]
        if not text.plain.endswith("\n"):
            text.append("\n")
        text.append(f"{name:8} ▶", "bold")
        text.append_text(_part_text(side["kept"], drawn))
        if side["cut_tokens"]:
            text.append(f"[cut at max_length={max_length}: {side['cut_tokens']:,} tokens]", "bold")
            text.append_text(_part_text(side["cut"], CUT))
    return text


def _part_text(part: str, drawn: Drawn) -> Text:
    if len(part) <= drawn.characters:
        return Text(part.translate(SIGNS), drawn.style)
    half = drawn.characters // 2
    start, end = part[:half].translate(SIGNS), part[-half:].translate(SIGNS)
    left_out = len(part) - drawn.characters
    return Text(f"{start}\n[... {left_out:,} more characters ...]\n{end}", drawn.style)
