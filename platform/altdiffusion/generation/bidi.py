"""The order in which the characters of one line are drawn: the Unicode bidirectional algorithm (UAX #9).

Rule numbers are the standard's. Explicit embeddings, overrides and isolates (X1 to X8) are left out: their control
characters have no effect, since a caption is one paragraph of plain text. All other rules are implemented.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

_IGNORED = frozenset(["LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN"])
_NEUTRAL = frozenset(["B", "S", "WS", "ON"])
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_MOST_OPEN = 63


@dataclass(frozen=True)
class DirectionalRun:
    """Characters `start` to `stop` of a text, which run in one direction."""

    start: int
    stop: int
    right_to_left: bool


def reads_right_to_left(text: str) -> bool:
    """Return whether the first strong character is of a right-to-left script (P2, P3)."""
    strong = (kind for kind in map(unicodedata.bidirectional, text) if kind in ("L", "R", "AL"))
    return next(strong, "L") != "L"


def directional_runs(text: str, right_to_left: bool) -> list[DirectionalRun]:
    """Return the runs of a line from left to right.

    Args:
        text: one line in logical order.
        right_to_left: the direction of its paragraph.
    """
    levels = _levels(text, int(right_to_left))
    runs: list[tuple[int, int, int]] = []
    for index, level in enumerate(levels):
        if runs and runs[-1][2] == level:
            runs[-1] = (runs[-1][0], index + 1, level)
        else:
            runs.append((index, index + 1, level))
    for level in range(max(levels, default=0), 0, -1):  # L2
        runs = _reversed_from(runs, level)
    return [DirectionalRun(start, stop, level % 2 == 1) for start, stop, level in runs]


def _reversed_from(runs: list[tuple[int, int, int]], level: int) -> list[tuple[int, int, int]]:
    """Return the runs with every sequence of runs at `level` or above reversed."""
    ordered: list[tuple[int, int, int]] = []
    high: list[tuple[int, int, int]] = []
    for run in runs:
        if run[2] >= level:
            high.insert(0, run)
        else:
            ordered += [*high, run]
            high = []
    return ordered + high


def _levels(text: str, base: int) -> list[int]:
    """Return the embedding level of each character."""
    original = [unicodedata.bidirectional(character) or "L" for character in text]
    kept = [index for index, kind in enumerate(original) if kind not in _IGNORED]  # X9
    outer = "R" if base else "L"
    kinds = _weak([original[index] for index in kept], outer)
    _brackets([text[index] for index in kept], kinds, [original[index] for index in kept], outer)
    _neutral(kinds, outer)
    levels = [base] * len(text)
    for index, kind in zip(kept, kinds, strict=True):  # I1, I2
        levels[index] = base + ({"R": 0} if base else {"L": 0, "R": 1}).get(kind, 1 if base else 2)
    for index in range(1, len(text)):
        if original[index] in _IGNORED:
            levels[index] = levels[index - 1]
    for index in range(len(text) - 1, -1, -1):  # L1
        if original[index] not in ("WS", "S", "B") and original[index] not in _IGNORED:
            break
        levels[index] = base
    return levels


def _weak(kinds: list[str], outer: str) -> list[str]:
    """Return the types after the rules W1 to W7."""
    strong = previous = outer
    for index, kind in enumerate(kinds):
        if kind == "NSM":  # W1
            kinds[index] = previous
        elif kind in ("L", "R", "AL"):
            strong = kind
        elif kind == "EN" and strong == "AL":  # W2
            kinds[index] = "AN"
        previous = kinds[index]
    kinds = ["R" if kind == "AL" else kind for kind in kinds]  # W3
    for index in range(1, len(kinds) - 1):  # W4
        before, kind, after = kinds[index - 1 : index + 2]
        if before == after and ((kind in ("ES", "CS") and before == "EN") or (kind == "CS" and before == "AN")):
            kinds[index] = before
    for order in (range(len(kinds)), range(len(kinds) - 1, -1, -1)):  # W5
        previous = ""
        for index in order:
            if kinds[index] == "ET" and previous == "EN":
                kinds[index] = "EN"
            previous = kinds[index]
    strong = outer
    for index, kind in enumerate(kinds):
        if kind in ("ES", "ET", "CS"):  # W6
            kinds[index] = "ON"
        elif kind in ("L", "R"):
            strong = kind
        elif kind == "EN" and strong == "L":  # W7
            kinds[index] = "L"
    return kinds


def _strong(kind: str) -> str:
    """Return a type as N0 to N2 see it: numbers count as right to left."""
    return "R" if kind in ("R", "EN", "AN") else kind


def _brackets(characters: list[str], kinds: list[str], original: list[str], outer: str) -> None:
    """Give both brackets of a pair one direction (N0)."""
    for opening, closing in _pairs(characters, kinds):
        inside = {_strong(kind) for kind in kinds[opening + 1 : closing]} & {"L", "R"}
        if not inside:
            continue
        before = next((_strong(kind) for kind in reversed(kinds[:opening]) if _strong(kind) in ("L", "R")), outer)
        direction = outer if outer in inside else before
        for place in (opening, closing):
            kinds[place] = direction
            for mark in range(place + 1, len(kinds)):
                if original[mark] != "NSM":
                    break
                kinds[mark] = direction


def _pairs(characters: list[str], kinds: list[str]) -> list[tuple[int, int]]:
    """Return the places of bracket pairs in order of their opening (BD16)."""
    pairs: list[tuple[int, int]] = []
    awaited: list[tuple[str, int]] = []
    for index, character in enumerate(characters):
        if kinds[index] != "ON":
            continue
        if character in _CLOSING:
            if len(awaited) == _MOST_OPEN:
                return []
            awaited.append((_CLOSING[character], index))
        for depth in range(len(awaited) - 1, -1, -1):
            if awaited[depth][0] == character:
                pairs.append((awaited[depth][1], index))
                del awaited[depth:]
                break
    return sorted(pairs)


def _neutral(kinds: list[str], outer: str) -> None:
    """Resolve characters without a direction of their own (N1, N2)."""
    start = 0
    while start < len(kinds):
        if kinds[start] not in _NEUTRAL:
            start += 1
            continue
        stop = start
        while stop < len(kinds) and kinds[stop] in _NEUTRAL:
            stop += 1
        before = _strong(kinds[start - 1]) if start else outer
        after = _strong(kinds[stop]) if stop < len(kinds) else outer
        kinds[start:stop] = [before if before == after else outer] * (stop - start)
        start = stop
