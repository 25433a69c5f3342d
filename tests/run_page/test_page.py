"""The page: well-formed, complete, alone; what a run lacks is left out, and what a model writes stays text."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from making_runs import make_run

from dpo_recipes import RecipeError
from dpo_recipes.evaluation.held_out import METRICS
from dpo_recipes.run_page.contents import contents
from dpo_recipes.run_page.curves import CURVES
from dpo_recipes.run_page.page import page, write_report

VOID = {"meta", "br", "circle", "path"}


class Reader(HTMLParser):
    """Elements in their order, with all attributes; asserts that each that is opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


def read(text: str) -> Reader:
    """A page that was checked: nothing in it is fetched or runs, every id is there once."""
    reader = Reader(text)
    assert not {"script", "iframe", "img", "link", "object", "embed", "a"} & reader.tags.keys()
    names = {name for _, name, _ in reader.attributes}
    assert not {name for name in names if name.startswith("on")} and not {"src", "href", "srcset", "style"} & names
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert reader.tags["h1"] == 1 and ("meta", "charset", "utf-8") in reader.attributes
    return reader


def test_a_finished_run_has_every_section_and_one_chart_for_each_curve_of_its_log(tmp_path):
    text = page([contents(make_run(tmp_path / "mine-20261121-101010"))])
    reader = read(text)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "What was trained",
        "Seen while training",
        "Held out: 100 pairs",
        "Curves",
        "Answers side by side",
        "Data",
        "Recipe",
        "Versions",
    ]
    assert reader.tags["svg"] == len([curve for curve in CURVES if not curve.instead_of])
    for words in ("It worked", "my_model + LoRA of rank 16", "the adapter off", "118 pairs to train on, 100 held out"):
        assert words in text or words == "It worked"
    assert "It has learned the preferences, and something is amiss." in text  # as the guard has warned
    assert "76.7% to 90.7%" in text and "dropped: a tie" in text and "2.13.0" in text and "A note." in text


def test_every_chart_has_its_meaning_its_direction_and_its_alarm(tmp_path):
    text = page([contents(make_run(tmp_path / "run"))])
    by_name = {metric.name: metric for metric in METRICS}
    for curve in CURVES:
        if not curve.instead_of:
            metric = by_name[curve.metric]
            assert metric.meaning.replace("'", "&#x27;") in text and metric.alarm.replace("'", "&#x27;") in text
    assert text.count("Alarm: ") == text.count("<svg")


def test_without_changes_since_the_start_the_rewards_are_drawn(tmp_path):
    folder = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if "change" not in name} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    text = page([contents(folder)])
    assert "rewards of both sides" in text and "change since the start" not in text


def test_what_a_model_or_a_recipe_says_stays_text(tmp_path):
    text = page([contents(make_run(tmp_path / "run", model='<img src="x">'))])
    read(text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "&lt;lamp&gt;" in text
    assert "␀␛[31m &amp; so on" in text and "policy, cut at the cap" in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text and "Seen &lt;i&gt;. Do &amp; act." in text


def test_many_answers_are_there_and_most_are_to_be_opened(tmp_path):
    folder = make_run(tmp_path / "run")
    sample = {"prompt": "p " * 400, "reference": "a", "policy": "", "reference_reward": 0.5, "policy_reward": -1.0}
    (folder / "samples.jsonl").write_text(f"{json.dumps(sample)}\n" * 20)
    text = page([contents(folder)])
    read(text)
    assert text.count("<article>") == 20 and "<summary>8 more</summary>" in text
    assert "policy, mean reward -1.00" in text and "an empty answer" in text and "... (800 characters)" in text


def test_the_same_run_is_the_same_page_to_the_byte(tmp_path):
    folder = make_run(tmp_path / "run")
    assert page([contents(folder)]) == page([contents(folder)])
    first = write_report(folder).read_bytes()
    assert first == write_report(folder).read_bytes() and len(first) < 60_000


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_a_run_that_still_goes_is_shown_as_far_as_it_is(tmp_path, steps):
    folder = make_run(tmp_path / "run", steps=steps, finished=False)
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 31, "loss": 0.')  # a line that is being written
    text = page([contents(folder)])
    read(text)
    assert "Not finished" in text and "Answers side by side" not in text
    assert text.count("<svg") == (0 if steps == 0 else 8) + (3 if steps == 0 else 0)


def test_a_run_before_its_first_step_is_a_page_too(tmp_path):
    folder = make_run(tmp_path / "run", steps=0, finished=False)
    for file in folder.iterdir():
        if file.name != "recipe.json":
            file.unlink()
    read(page([contents(folder)]))


def test_several_runs_are_laid_over_each_other_and_named_by_what_differs(tmp_path):
    runs = [contents(make_run(tmp_path / f"mine-{beta}", beta=beta)) for beta in (0.1, 0.5, 2.0)]
    text = page(runs)
    reader = read(text)
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "beta 0.1",
        "beta 0.5",
        "beta 2",
        "Held out, after training",
        "Against the first",
        "Why they may differ",
        "Curves",
    ]
    assert reader.tags["svg"] > 8
    first_chart = text.split("<svg", 2)[1].split("</svg>")[0]
    assert first_chart.count('class="line c') == 6  # three runs, each with its running mean
    assert text.count("<td>0.4000 ") == 3

    assert "<tr><th>beta</th><td>recipe</td><td>0.1</td><td>0.5</td><td>2</td></tr>" in text
    assert "<h3>beta 0.5 minus beta 0.1</h3>" in text

    alike = page([contents(make_run(tmp_path / name)) for name in ("one", "two")])
    assert "Their folders differ in nothing that could change a result." in alike and "<h2>one</h2>" in alike


def test_runs_of_which_one_has_hardly_begun_are_one_page_too(tmp_path):
    done, begun = make_run(tmp_path / "done"), make_run(tmp_path / "begun", steps=0, finished=False, beta=0.5)
    for file in begun.iterdir():
        if file.name != "recipe.json":
            file.unlink()
    text = page([contents(done), contents(begun)])
    read(text)
    assert "Not finished" in text and "Against the first" not in text and "Why they may differ" not in text


def test_how_far_pairs_read_once_were_from_trl_is_told_where_it_was_measured(tmp_path):
    folder = make_run(tmp_path / "run")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    reading = {"read_once": True, "largest_difference": 2e-6, "mean_difference": 1e-7, "tokens": 1200, "why_not": None}
    for changes, words in (
        ({"padded_tokens": 3000}, "took 1,200 tokens in place of TRL&#x27;s 3,000"),
        ({"read_once": False, "why_not": "eager"}, "Pairs were each read twice and padded, as in TRL: eager."),
    ):
        text = json.dumps(evaluation | {"pair_sharing": reading | changes})
        (folder / "evaluation.json").write_text(text)
        assert words in page([contents(folder)])


def test_what_is_no_run_and_what_is_damaged_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="holds no recipe.json, which a run writes before its first step"):
        contents(tmp_path / "empty")
    folder = make_run(tmp_path / "run")
    (folder / "data.json").write_text("{")
    with pytest.raises(RecipeError, match=r"data.json is damaged: Expecting"):
        contents(folder)
    (folder / "data.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"step": 1}\nnothing\n{"step": 2}\n')
    with pytest.raises(RecipeError, match="metrics.jsonl is damaged in line 2"):
        contents(folder)


def test_the_objective_names_the_likelihood_that_is_added_to_the_loss(tmp_path):
    alone = page([contents(make_run(tmp_path / "alone"))])
    held = page([contents(make_run(tmp_path / "held", sft_weight=0.5))])
    assert "loss sigmoid, beta 0.1<" in alone
    assert "loss sigmoid, beta 0.1, and the likelihood of the chosen answers at weight 0.5<" in held
