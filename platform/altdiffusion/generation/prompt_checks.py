"""The check of prompts: columns of text become columns of records.PROMPTS, and each bad row a reject with its reason.

A row has one reason, the first that applies in the order of `rejects.py`. All work is done on columns of a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import mmh3
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.execution.reject_reasons import Reason, rejects_table
from altdiffusion.generation.blocked_terms import BlockedTerms
from altdiffusion.generation.drop_reasons import (
    PROMPT_BLANK,
    PROMPT_BLOCKED,
    PROMPT_CHARACTERS,
    PROMPT_DUPLICATE,
    PROMPT_ID,
    PROMPT_LANGUAGE,
    PROMPT_LENGTH,
    PROMPT_REGIONS,
    PROMPT_ROW,
    PROMPT_SEED,
    PROMPT_SETTING,
    PROMPT_SIZE,
)
from altdiffusion.generation.prompt_regions import BadRegions, canonical_regions
from altdiffusion.generation.settings import PromptsConfig, SamplerName
from altdiffusion.languages import UNDETERMINED, language_of, normalised_tag
from altdiffusion.records import PROMPTS

Detect = Callable[[pa.Array], pa.Array]
"""Returns the language of each text (string arrays), null where it is not certain."""
Mask = npt.NDArray[np.bool_]

MOST_STEPS = 1000
MOST_COUNT = 10_000
_ID = r"^[A-Za-z0-9_][A-Za-z0-9._\-]{0,199}$"
_FILE_ENDING = r"\.(?:png|jpe?g|webp)$"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_BLANK = r"^[\s\p{Z}\p{C}]*$"
"""Separators, controls and characters without width."""
_WHOLE = r"^[-+]?[0-9]{1,18}(?:\.0*)?$"
_LONG = re.compile(r"([-+]?[0-9]+)(?:\.0*)?")
_NUMBER = r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?$"
_SHOWN = 80


class PromptChecker:
    """Checks the chunks of one file, in order: an id may occur once in all of them."""

    def __init__(
        self, config: PromptsConfig, unit_id: str, detect: Detect | None = None, blocked: BlockedTerms | None = None
    ) -> None:
        """Keep the settings.

        Args:
            unit_id: the unit that the rejects name.
            detect: finds the language of rows without one; None leaves them `und`.
            blocked: terms that no prompt may contain.
        """
        self._config = config
        self._unit_id = unit_id
        self._detect = detect
        self._blocked = blocked
        self._ids: list[pa.Array] = []
        self._first = 0

    def check(self, raw: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the good rows of a RAW table in the schema PROMPTS, with null for a seed still to be chosen, and the
        others as a REJECTS table."""
        chunk = _Chunk(raw.combine_chunks())
        chunk.refuse(chunk.has("problem"), PROMPT_ROW, None, "")
        columns = {"prompt": self._prompt(chunk), "id": self._id(chunk), "language": self._language(chunk)}
        columns["seed"] = self._seed(chunk)
        columns |= {side: self._side(chunk, side) for side in ("width", "height")}
        columns |= self._settings(chunk)
        columns["regions"] = self._regions(chunk, columns["width"])
        columns["language"] = self._detected(chunk, columns["prompt"], columns["language"])
        self._refuse_blocked(chunk, columns["prompt"], columns["language"])
        self._refuse_repeated(chunk, columns["id"])
        good = pa.array(~chunk.refused)
        accepted = pa.table([columns[field.name].cast(field.type) for field in PROMPTS], names=PROMPTS.names)
        accepted = accepted.filter(good)
        self._ids.append(accepted["id"].combine_chunks())
        rejects = chunk.rejects(self._unit_id, self._first)
        self._first += raw.num_rows
        return accepted, rejects

    def _prompt(self, chunk: _Chunk) -> pa.Array:
        prompt = chunk.text("prompt")
        chunk.refuse(_true(pc.match_substring_regex(prompt, _BLANK), null=True), PROMPT_BLANK, "prompt", "is blank")
        control = _true(pc.match_substring_regex(prompt, _CONTROL))
        chunk.refuse(control, PROMPT_CHARACTERS, "prompt", "has control characters")
        most = self._config.max_prompt_chars
        long = _true(pc.greater(pc.utf8_length(prompt), most))
        chunk.refuse(long, PROMPT_LENGTH, "prompt", f"has more than {most} characters")
        return prompt

    def _id(self, chunk: _Chunk) -> pa.Array:
        """Return the ids; a row without one is named by its number: `row-0000012`."""
        name = chunk.text("id")
        if self._config.shape.file_ids:
            name = pc.replace_substring_regex(name, _FILE_ENDING, "")
        numbers = pc.utf8_lpad(chunk.raw["number"].combine_chunks().cast(pa.string()), 7, "0")
        name = pc.coalesce(name, pc.binary_join_element_wise("row", numbers, "-"))
        wrong = ~_true(pc.match_substring_regex(name, _ID))
        chunk.refuse(wrong, PROMPT_ID, "id", "is not 1 to 200 of the characters A-Z, a-z, 0-9, '.', '_' and '-'")
        return name

    def _language(self, chunk: _Chunk) -> pa.Array:
        config = self._config
        missing = config.language or config.shape.language or UNDETERMINED
        coded = pc.fill_null(chunk.text("language"), missing).dictionary_encode()
        tags = [normalised_tag(text) for text in coded.dictionary.to_pylist()]
        tag = pa.array(tags, pa.string()).take(coded.indices)
        chunk.refuse(~_true(pc.is_valid(tag)), PROMPT_LANGUAGE, "language", "is not a BCP 47 tag")
        return tag

    def _wanted(self, tag: pa.Array) -> Mask:
        coded = tag.dictionary_encode()
        known = [
            text is not None and bool({text, language_of(text)} & {*self._config.languages})
            for text in coded.dictionary.to_pylist()
        ]
        return _true(pa.array(known, pa.bool_()).take(coded.indices))

    def _seed(self, chunk: _Chunk) -> pa.Array:
        seed, wrong = _whole(chunk.text("seed"))
        chunk.refuse(wrong, PROMPT_SEED, "seed", "is not a whole number of 64 bits")
        if self._config.shape.random_seed is not None:
            seed = pc.if_else(pc.equal(seed, self._config.shape.random_seed), None, seed)
        return seed if self._config.default_seed is None else pc.fill_null(seed, self._config.default_seed)

    def _side(self, chunk: _Chunk, name: str) -> pa.Array:
        config = self._config
        side, wrong = _whole(chunk.text(name))
        chunk.refuse(wrong, PROMPT_SIZE, name, "is not a whole number")
        side = pc.fill_null(side, config.default_size)
        outside = ~_between(side, 8, config.max_side)
        chunk.refuse(outside, PROMPT_SIZE, name, f"is not between 8 and {config.max_side} pixels (prompts.max_side)")
        number = side.to_numpy(zero_copy_only=False)
        chunk.refuse(
            number % config.size_multiple != 0, PROMPT_SIZE, name, f"is not a multiple of {config.size_multiple}"
        )
        return pc.if_else(pa.array(outside), None, side)

    def _settings(self, chunk: _Chunk) -> dict[str, pa.Array]:
        """Return what a row may set instead of the job; null takes the job's."""
        negative = chunk.text("negative_prompt")
        most = self._config.max_prompt_chars
        wrong = _true(pc.match_substring_regex(negative, _CONTROL)) | _true(pc.greater(pc.utf8_length(negative), most))
        chunk.refuse(
            wrong, PROMPT_SETTING, "negative_prompt", f"has control characters, or more than {most} characters"
        )
        found = {"negative_prompt": negative, "sampler": self._sampler(chunk), "guidance_scale": _scale(chunk)}
        for name, highest in (("steps", MOST_STEPS), ("count", MOST_COUNT)):
            number, wrong = _whole(chunk.text(name))
            wrong |= ~_between(number, 1, highest)
            chunk.refuse(wrong, PROMPT_SETTING, name, f"is not a whole number from 1 to {highest}")
            found[name] = pc.if_else(pa.array(wrong), None, number)
        return found

    def _regions(self, chunk: _Chunk, width: pa.Array) -> pa.Array:
        """Return the regions in one form, as JSON."""
        texts = chunk.text("regions").to_pylist()
        found: list[str | None] = [None] * len(texts)
        for place in np.flatnonzero(chunk.has("regions") & ~chunk.refused):
            pixels = width[int(place)].as_py()
            narrowest = self._config.size_multiple / pixels
            try:
                found[place] = canonical_regions(texts[place], narrowest, self._config.max_prompt_chars)
            except BadRegions as error:
                mask = np.zeros(len(texts), bool)
                mask[place] = True
                chunk.refuse(mask, PROMPT_REGIONS, "regions", str(error))
        return pa.array(found, pa.string())

    def _sampler(self, chunk: _Chunk) -> pa.Array:
        """Return our name of each row's sampler; a preset's samplers that are not ours are null."""
        ours, known = get_args(SamplerName), self._config.shape.samplers
        coded = pc.utf8_lower(pc.utf8_trim_whitespace(chunk.text("sampler"))).dictionary_encode()
        names = [text if known is None else known.get(text) for text in coded.dictionary.to_pylist()]
        sampler = pa.array([name if name in ours else None for name in names], pa.string()).take(coded.indices)
        if known is None:
            unknown = chunk.has("sampler") & ~_true(pc.is_valid(sampler))
            chunk.refuse(unknown, PROMPT_SETTING, "sampler", f"is not one of {', '.join(ours)}")
        return sampler

    def _refuse_blocked(self, chunk: _Chunk, prompts: pa.Array, tags: pa.Array) -> None:
        """Refuse prompts with a blocked term; the reject states where the file has it, and repeats neither."""
        if self._blocked is None:
            return
        found: list[str | None] = [None] * len(prompts)
        for place in np.flatnonzero(~chunk.refused):
            found[place] = self._blocked.match(prompts[int(place)].as_py(), tags[int(place)].as_py())
        terms = pa.array(found, pa.string())
        chunk.refuse(_true(pc.is_valid(terms)), PROMPT_BLOCKED, "prompt", "of blocked_terms is in it", terms)

    def _refuse_repeated(self, chunk: _Chunk, ids: pa.Array) -> None:
        """Refuse ids of earlier good rows, of this chunk or another."""
        chunk.refuse(_true(_among(ids, self._ids)), PROMPT_DUPLICATE, "id", "is also the id of an earlier row")
        places = np.flatnonzero(~chunk.refused)
        numbers = ids.take(pa.array(places)).dictionary_encode().indices.to_numpy()
        repeated = np.ones(len(places), bool)
        repeated[np.unique(numbers, return_index=True)[1]] = False
        mask = np.zeros(len(ids), bool)
        mask[places[repeated]] = True
        chunk.refuse(mask, PROMPT_DUPLICATE, "id", "is also the id of an earlier row")

    def _detected(self, chunk: _Chunk, prompts: pa.Array, tags: pa.Array) -> pa.Array:
        """Return the languages, also of rows without one where it is certain, and refuse those that are not wanted."""
        unknown = _true(pc.equal(tags, UNDETERMINED)) & ~chunk.refused
        if self._detect is not None and unknown.any():
            found = self._detect(prompts.filter(pa.array(unknown)))
            tags = pc.replace_with_mask(tags, pa.array(unknown), pc.fill_null(found, UNDETERMINED))
        if self._config.languages:
            wanted = ", ".join(self._config.languages)
            chunk.refuse(~self._wanted(tags), PROMPT_LANGUAGE, "language", f"is not one of {wanted}", tags)
        return tags


class _Chunk:
    """A RAW table with the first reason of each row to be refused."""

    def __init__(self, raw: pa.Table) -> None:
        self.raw = raw
        self.refused: Mask = np.zeros(raw.num_rows, bool)
        self._found: list[tuple[npt.NDArray[np.int64], Reason, list[str]]] = []

    def text(self, name: str) -> pa.Array:
        """Return a column, string with nulls."""
        return self.raw[name].combine_chunks()

    def has(self, name: str) -> Mask:
        """Return where a column is not null."""
        return _true(pc.is_valid(self.text(name)))

    def refuse(
        self, wrong: Mask, reason: Reason, field: str | None, problem: str, values: pa.Array | None = None
    ) -> None:
        """Give a reason to the rows that are wrong and have none.

        Args:
            wrong: [rows].
            field: the field that is wrong; None where the row could not be read, which has its own problem.
            problem: what is wrong with the value.
            values: what the detail shows instead of the field as read.
        """
        places = np.flatnonzero(wrong & ~self.refused)
        if not len(places):
            return
        self.refused[places] = True
        shown = self.text(field or "problem") if values is None else values
        rows = zip(
            self.raw["number"].take(pa.array(places)).to_pylist(), shown.take(pa.array(places)).to_pylist(), strict=True
        )
        details = [
            f"row {number}, field {field}: {_shown(value)} {problem}" if field else f"row {number}: {value}"
            for number, value in rows
        ]
        self._found.append((places, reason, details))

    def rejects(self, unit_id: str, first: int) -> pa.Table:
        """Return the refused rows as a REJECTS table, in their order.

        Args:
            first: number of rows before this chunk.
        """
        entries = sorted(
            (int(place), reason, detail)
            for places, reason, details in self._found
            for place, detail in zip(places, details, strict=True)
        )
        return rejects_table(
            unit_id,
            row=[first + place for place, _, _ in entries],
            reason=[reason for _, reason, _ in entries],
            detail=[detail for _, _, detail in entries],
        )


def with_seeds(prompts: pa.Table) -> pa.Table:
    """Return the prompts with a seed for each row without one: a 32-bit hash of the prompt, by MurmurHash3.

    The hash is seeded with the number of earlier rows of the same prompt that had no seed either. So repeated prompts
    give different images, and a row's seed does not depend on the other prompts of its file.
    """
    missing = np.flatnonzero(pc.is_null(prompts["seed"]).to_numpy())
    if not len(missing):
        return prompts
    coded = prompts["prompt"].take(pa.array(missing)).combine_chunks().dictionary_encode()
    kind = coded.indices.to_numpy()
    order = np.argsort(kind, kind="stable")
    starts = np.flatnonzero(np.diff(kind[order], prepend=-1))
    turn = np.empty(len(kind), np.int64)
    turn[order] = np.arange(len(kind)) - np.repeat(starts, np.diff(starts, append=len(kind)))
    first = np.fromiter(
        (mmh3.hash(text.as_py(), 0, signed=False) for text in coded.dictionary), np.int64, len(coded.dictionary)
    )
    seeds = first[kind]
    for place in np.flatnonzero(turn):
        seeds[place] = mmh3.hash(coded.dictionary[int(kind[place])].as_py(), int(turn[place]), signed=False)
    every = prompts["seed"].combine_chunks()
    mask = np.zeros(len(every), bool)
    mask[missing] = True
    filled = pc.replace_with_mask(every, pa.array(mask), pa.array(seeds, pa.int64()))
    return prompts.set_column(prompts.column_names.index("seed"), "seed", filled)


def _true(values: pa.Array, *, null: bool = False) -> Mask:
    return np.asarray(pc.fill_null(values, null).to_numpy(zero_copy_only=False), bool)


def _between(values: pa.Array, low: int, high: int) -> Mask:
    """Return whether a value is in a range; null is."""
    return _true(pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high)), null=True)


def _among(values: pa.Array, sets: list[pa.Array]) -> pa.Array:
    if not sets:
        return pa.array(np.zeros(len(values), bool))
    return pc.is_in(values, value_set=pa.concat_arrays(sets))


def _whole(texts: pa.Array) -> tuple[pa.Array, Mask]:
    """Return int64 numbers, null where there is none, and where a text is not a whole number of 64 bits."""
    texts = pc.utf8_trim_whitespace(texts)
    short = pc.match_substring_regex(texts, _WHOLE)
    digits = pc.replace_substring_regex(pc.if_else(short, texts, None), r"^\+|\.0*$", "")
    numbers = digits.cast(pa.int64())
    wrong = _true(pc.is_valid(texts)) & ~_true(short)
    places = np.flatnonzero(wrong)
    long = []
    for place in places:
        match = _LONG.fullmatch(texts[int(place)].as_py())
        number = int(match[1]) if match is not None and len(match[1]) < 30 else 2**63
        wrong[place] = not -(2**63) <= number < 2**63
        long.append(None if wrong[place] else number)
    if len(places):
        mask = np.zeros(len(texts), bool)
        mask[places] = True
        numbers = pc.replace_with_mask(numbers, pa.array(mask), pa.array(long, pa.int64()))
    return numbers, wrong


def _scale(chunk: _Chunk) -> pa.Array:
    """Return each row's guidance, float64 with nulls."""
    texts = pc.utf8_trim_whitespace(chunk.text("guidance_scale"))
    is_number = pc.match_substring_regex(texts, _NUMBER)
    values = pc.replace_substring_regex(pc.if_else(is_number, texts, None), r"^\+", "").cast(pa.float64())
    wrong = (_true(pc.is_valid(texts)) & ~_true(is_number)) | ~_between(values, 0, 100)
    chunk.refuse(wrong, PROMPT_SETTING, "guidance_scale", "is not a number from 0 to 100")
    return pc.if_else(pa.array(wrong), None, values)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
