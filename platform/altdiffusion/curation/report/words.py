"""What the steps of curation do, in a line each."""

from __future__ import annotations

STEPS = {
    "select": "Filters and language identification over the links as published",
    "deduplicate": "Exact duplicates by row id and by URL, across all sources",
    "balance": "At most so many rows of each language",
    "download": "Fetched, checked, decoded and resized",
    "retry": "Rejects whose reason may pass, tried again",
    "distinct": "Duplicates among the pictures themselves",
    "change": "A later version of the same rows",
}
