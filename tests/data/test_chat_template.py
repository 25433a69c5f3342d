"""Dates that a template prints, names that it never reads, and what is said of it."""

from __future__ import annotations

import pytest
from making import CHATML, DATED

from dpo_recipes.data.chat_template import pin_date, template_findings, unread_kwargs
from dpo_recipes.errors import Finding, RecipeError

SMOLLM3 = """{%- set today = strftime_now("%d %B %Y") -%}Today Date: {{ today }}"""
LLAMA32 = (
    "{%- if strftime_now is defined %}{%- set d = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set d = '26 Jul 2024' %}{%- endif %}{{ d }}"
)


@pytest.mark.parametrize(
    ("template", "date", "text"),
    [
        (SMOLLM3, "2025-07-08", "Today Date: 08 July 2025"),
        (LLAMA32, "2025-03-01", "01 Mar 2025"),
        ("{{ strftime_now( '%A %a %h %%B %Y-%m-%d' ) }}", "2024-02-29", "Thursday Thu Feb %B 2024-02-29"),
    ],
)
def test_a_pinned_template_prints_that_date_on_every_day(template, date, text):
    import jinja2

    pinned = jinja2.Environment().from_string(pin_date(template, date))
    assert pinned.render(strftime_now=lambda form: "another day") == text


def test_a_template_without_a_date_is_unchanged():
    assert pin_date("{{ messages[0]['content'] }}", "2025-07-08") == "{{ messages[0]['content'] }}"


def test_kwargs_that_a_template_never_reads():
    template = (
        "{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}{%- for m in messages %}"
        "{%- if loop.last %}{%- break %}{%- endif %}{% generation %}{{ m.content }}{%- endgeneration -%}{%- endfor %}"
        "{%- set xml = xml_tools|default([]) %}"
    )
    kwargs = {"enable_thinking": False, "thinking": True, "xml_tools": [], "xml": 1}
    assert unread_kwargs(template, kwargs) == ["thinking", "xml"]
    with pytest.raises(RecipeError, match="line 2 is not valid Jinja"):
        unread_kwargs("x\n{% if %}", {})


def test_plain_text_has_no_template_to_say_anything_of():
    assert template_findings(None, {}) == [
        Finding("pass", "template", "plain text, to which no chat template is applied"),
    ]


def test_a_template_that_prints_the_day_or_thinks_unasked_is_a_warning_each():
    today, thinking = template_findings(DATED, {})
    assert (today.level, thinking.level) == ("warn", "warn")
    assert "data.template_date" in today.text and "'enable_thinking': False" in thinking.text

    [thinking] = template_findings(pin_date(DATED, "2025-07-08"), {})
    assert "can think" in thinking.text
    [today] = template_findings(DATED, {"enable_thinking": False})
    assert "today's date" in today.text


def test_a_template_that_does_nothing_unasked_passes():
    [finding] = template_findings(CHATML, {})
    assert finding.level == "pass" and "the same tokens every day" in finding.text
