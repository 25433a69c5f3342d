"""A few pairs as the model sees them: special tokens, the border of prompt and answer, and what max_length cuts."""

from itertools import islice
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from ..recipe.recipe import Recipe
from ..training.session import Session

# style, and the most characters that are drawn of a part
DRAWN = {"prompt": ("cyan", 1500), "chosen": ("green", 1500), "rejected": ("yellow", 1500), "cut": ("dim strike", 240)}
# A newline stays one, behind its sign; no other control character, such as an escape sequence's first, gets through.
SIGNS = {c: chr(0x2400 + c) for c in range(32)} | dict.fromkeys(range(127, 160), "\ufffd") | {10: "↵\n", 9: "→\t"}


def rows(pairs: Any, tokenizer: Any, max_length: int | None, count: int) -> list[dict[str, Any]]:
    """The first tokenised pairs, decoded: row, prompt and its tokens; of each side the kept and cut text and tokens."""
    found: list[dict[str, Any]] = []
    for number, pair in enumerate(islice(pairs, count)):
        prompt = pair["prompt_ids"]
        row = {"row": pair.get("row", str(number)), "prompt": tokenizer.decode(prompt), "prompt_tokens": len(prompt)}
        for side in ("chosen", "rejected"):
            ids, end = prompt + pair[f"{side}_ids"], max(max_length or 2**60, len(prompt))
            # one text cut in three, since a decoder may drop the space before the first token that it is given
            whole, kept = tokenizer.decode(ids), len(tokenizer.decode(ids[:end]))
            row[side] = {"kept": whole[len(row["prompt"]) : kept], "cut": whole[kept:]}
            row[side] |= {"tokens": len(ids) - len(prompt), "cut_tokens": len(ids[end:])}
        found.append(row)
    return found


def preview(recipe: Recipe, *, count: int = 3, console: Console | None = None) -> list[dict[str, Any]]:
    """Draw and return `rows` of the first train pairs that a recipe would train on."""
    start = Session(recipe, console := console or Console())
    start.read_pairs()
    return draw(start.train, start.tokenizer.tokenizer, max_length=recipe.max_length, count=count, console=console)


def draw(pairs: Any, tokenizer: Any, *, max_length: int | None, count: int = 3, console: Console) -> list[dict]:
    """Draw and return `rows`. Signs carry the meaning, and it reads without colour; nothing in the data is markup."""
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}

    def drawn(text: str, style: str, most: int) -> Text:
        texts = [text] if len(text) <= most else [text[: most // 2], text[-(most // 2) :]]
        gap = f"\n[... {len(text) - most:,} more characters ...]\n"
        return Text(gap.join(end.translate(SIGNS) for end in texts), style)

    for row in (found := rows(pairs, tokenizer, max_length, count)):
        p, c, r = row["prompt_tokens"], row["chosen"]["tokens"], row["rejected"]["tokens"]
        title = Text(f"row {row['row']}: prompt {p:,}, chosen {c:,}, rejected {r:,} tokens")
        console.print(Rule(title, align="left"))
        shown = Text().append_text(drawn(row["prompt"], *DRAWN["prompt"]))  # a base style would colour all
        for side in ("chosen", "rejected"):
            shown.append("" if shown.plain.endswith("\n") else "\n").append(f"{side:8} ▶", "bold")
            shown.append_text(drawn(row[side]["kept"], *DRAWN[side]))
            if n := row[side]["cut_tokens"]:
                shown.append(f"[cut at max_length={max_length}: {n:,} tokens]", "bold")
                shown.append_text(drawn(row[side]["cut"], *DRAWN["cut"]))
        shown.highlight_words(special, "bold")
        console.print(shown, soft_wrap=not console.is_terminal)
    console.print("▶ an answer begins, which is what is learned   ↵ a line ends", style="dim")
    return found
