"""docs/columns.md states what `records.py` does."""

from __future__ import annotations

from tests.columns_page import PAGE, page


def test_the_page_of_columns_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.columns_page"
