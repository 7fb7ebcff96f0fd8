"""Templates print nothing that is not fit for a page, and nothing that is missing."""

from __future__ import annotations

import re
from importlib.resources import files

import jinja2
import pytest
from markupsafe import Markup

from altdiffusion.html.page import count, environment, percent, plain, render, size


def printed(template: str, **values: object) -> str:
    return environment().from_string(template).render(**values)


def test_text_is_made_fit_without_being_asked() -> None:
    assert printed("{{ a }}", a='<b> & "x"\u202e\x07') == "&lt;b&gt; &amp; &#34;x&#34;��"
    assert printed("{{ a }}", a="x" * 10_000) == "x" * 200 + "…"
    assert printed("{{ a | fit(3) }}|{{ a | fit(500) | length }}", a="<" * 300) == "&lt;&lt;&lt;…|1200"
    assert printed("{{ a | join(', ') }}", a=["<i>", "e" + "\u0301" * 9]) == "&lt;i&gt;, e" + "\u0301" * 4
    assert printed("{% macro m(x) %}<b>{{ x }}</b>{% endmacro %}{{ m(a) }}", a="<i>") == "<b>&lt;i&gt;</b>"
    assert printed("{{ a }}", a=Markup("<i>")) == "<i>"
    assert plain("a\nb") == "a b"


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="unknown"):
        printed("{{ unknown }}")
    with pytest.raises(jinja2.UndefinedError, match="unknown"):
        printed("{{ a.unknown | fit }}", a=object())
    with pytest.raises(TypeError, match="None"):
        printed("{{ a }}", a=None)
    with pytest.raises(jinja2.UndefinedError):
        render("report.html.j2")


def test_only_our_own_images_are_printed_as_they_are() -> None:
    templates = {name: (files("altdiffusion.html") / "templates" / name).read_text() for name in names()}
    assert {"base.html.j2", "lineage.html.j2", "report.html.j2", "style.css"} <= set(templates)
    trusted = [found for text in templates.values() for found in re.findall(r"\S+ *\| *safe", text)]
    assert trusted == ["image.data_uri | safe"]
    for name, text in templates.items():
        assert "autoescape" not in text and "Markup" not in text, name
        assert not re.search(r"=\{\{", text), f"{name}: an attribute without quotes"


def names() -> list[str]:
    return environment().list_templates()


def test_numbers_for_people() -> None:
    assert [percent(part, 10_000) for part in (0, 1, 5000, 9999, 10_000)] == [
        "0.0 %", "< 0.1 %", "50.0 %", "> 99.9 %", "100.0 %",
    ]  # fmt: skip
    assert percent(1, 0) == "–"
    assert (count(1234567), count(1234567, False), count(0, False)) == ("1,234,567", "≈ 1,230,000", "0")
    assert [size(n) for n in (12, 2100, 3.5e6, 1e9, 7e12)] == ["12 B", "2.1 kB", "3.5 MB", "1 GB", "7 TB"]
