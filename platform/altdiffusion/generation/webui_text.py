"""Prompts as AUTOMATIC1111's web interface writes and reads them.

Three forms, which one file may mix:

- the text that it keeps with an image: the prompt, then perhaps `Negative prompt: ...`, then a line of settings,
  `Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x768, ...`;
- a line of options, `--prompt "a cat" --seed 1 --width 512`, as its script `prompts_from_file` reads them;
- any other line, which is a prompt.

The first form may take several lines. It begins after an empty line or after the settings of the image before it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

Row = tuple[int, dict[str, Any] | None, str | None]
"""The number of a line, its values by our names, or what is wrong with it."""

_SETTINGS = re.compile(r"Steps: *\d+(?:,|$)")
_SETTING = re.compile(r"\s*(\w[\w \-/]*): *(\"(?:\\.|[^\"\\])*\"|[^,]*)(?:,|$)")
_NEGATIVE = "Negative prompt:"
_NAMES = {"Steps": "steps", "Sampler": "sampler", "CFG scale": "guidance_scale", "Seed": "seed"}
_OPTIONS = {
    "prompt": "prompt", "negative_prompt": "negative_prompt", "seed": "seed", "steps": "steps", "width": "width",
    "height": "height", "cfg_scale": "guidance_scale", "sampler_name": "sampler",
}  # fmt: skip
_COUNTS = ("batch_size", "n_iter")
_IGNORED = {
    "sd_model", "outpath_samples", "outpath_grids", "prompt_for_display", "styles", "subseed_strength", "subseed",
    "seed_resize_from_h", "seed_resize_from_w", "sampler_index", "restore_faces", "tiling", "do_not_save_samples",
    "do_not_save_grid",
}  # fmt: skip
"""Options of the script that have no meaning here."""


def webui_rows(lines: Iterable[str]) -> Iterator[Row]:
    """Yield the prompts of a text, each with the number of its first line, from 1."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith("--"):
            yield from _plain(block)
            yield _options(number, text)
        elif _SETTINGS.match(text):
            yield _image(block, number, text)
        elif text:
            block.append((number, text))
            continue
        else:
            yield from _plain(block)
        block = []
    yield from _plain(block)


def _plain(block: list[tuple[int, str]]) -> Iterator[Row]:
    """Yield a block without settings: one prompt per line, unless a line of it is a negative prompt."""
    if any(text.startswith(_NEGATIVE) for _, text in block):
        yield block[0][0], _texts(block), None
        return
    for number, text in block:
        yield number, {"prompt": text}, None


def _texts(block: list[tuple[int, str]]) -> dict[str, Any]:
    texts = [text for _, text in block]
    at = next((place for place, text in enumerate(texts) if text.startswith(_NEGATIVE)), len(texts))
    negative = "\n".join(texts[at:]).removeprefix(_NEGATIVE).strip()
    return {"prompt": "\n".join(texts[:at]), **({"negative_prompt": negative} if negative else {})}


def _image(block: list[tuple[int, str]], number: int, settings: str) -> Row:
    """Return the prompt of an image from the lines before its settings, and these."""
    values = _texts(block)
    for name, value in _SETTING.findall(settings):
        if name in _NAMES:
            values[_NAMES[name]] = value.strip()
        elif name == "Size":
            values["width"], _, values["height"] = value.strip().partition("x")
    return (block[0][0] if block else number), values, None


def _options(number: int, text: str) -> Row:
    """Return the prompt of a line of options; the words after `--prompt` up to the next option belong to it."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        return number, None, f"has options that cannot be read ({error})"
    values: dict[str, Any] = {}
    count = 1
    while words:
        name = words.pop(0).removeprefix("--")
        several = name in ("prompt", "negative_prompt")
        end = next((place for place, word in enumerate(words) if word.startswith("--")), len(words)) if several else 1
        value, words = " ".join(words[:end]), words[end:]
        if not value:
            return number, None, f"has the option --{name} without a value"
        if name in _COUNTS:
            if not value.isdigit():
                return number, None, f"has the option --{name} {value}, which is not a whole number"
            count *= int(value)
            values["count"] = str(count)
        elif name in _OPTIONS:
            values[_OPTIONS[name]] = value
        elif name not in _IGNORED:
            return number, None, f"has the unknown option --{name}"
    return number, values, None
