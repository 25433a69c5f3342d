"""CONTRIBUTING.md names what is there: its files exist, its import order is the one that is held."""

from __future__ import annotations

import re
from pathlib import Path

from test_architecture import ORDER

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_file_that_it_names_is_there():
    names = set(re.findall(r"`([\w/.]+(?:/|\.py|\.toml|\.txt|\.md))`", TEXT))
    assert len(names) >= 20
    for name in names:
        places = (ROOT / name, ROOT / "dpo_recipes" / name, *(ROOT / "dpo_recipes").glob(f"*/{name}"))
        assert any(place.exists() for place in places), name


def is_there(room: str) -> bool:
    package = ROOT / "dpo_recipes"
    return (package / room).exists() or (package / f"{room}.py").exists()


def test_the_import_order_is_the_one_that_is_held():
    stated = re.search(r"```\n(errors < .*?)```", TEXT, re.S)[1]
    levels = [set(re.split(r"\s*,\s*", level.strip())) for level in stated.split("<")]
    held = []
    for rooms in ORDER:
        present = {room for room in rooms if is_there(room)}
        if present and present != {"__main__"}:
            held.append(present)
    assert levels == held


def test_every_table_that_it_names_is_in_the_file_it_names():
    package = ROOT / "dpo_recipes"
    for table, file in {
        "PLUGIN_LOSSES": package / "losses/plugins.py",
        "FORMATS": package / "formats/readers.py",
        "METRICS": package / "evaluation/held_out.py",
        "TRENDS": package / "guard/trends.py",
        "CURVES": package / "run_page/curves.py",
        "RULES": package / "recipe/recipe.py",
        "ACTS": ROOT / "tests/recipe/test_recipe.py",
    }.items():
        assert f"`{table}`" in TEXT
        assert re.search(rf"^{table}\b", file.read_text(encoding="utf-8"), re.M), table
