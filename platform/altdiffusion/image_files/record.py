"""What a generated image's file states about itself: everything that decides the image, and the row key over it.

The record is what its row key is the SHA-256 of. So equal keys have equal records, and a record that was edited no
longer has its key (which shows a mistake, not a forgery: anyone can compute a key). It holds no id, time, host or path.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.documents import DIGEST

FORMAT = "altdiffusion/1"
MAX_BYTES = 1 << 18
"""Largest record that is read, in bytes of JSON."""
_UNSAFE = re.compile("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML or UTF-8 does not allow, or that viewers interpret: JSON escapes them."""
_WHOLE, _NUMBER = (int,), (int, float)
_IMAGE: dict[str, tuple[type, ...]] = {
    "prompt": (str,), "seed": _WHOLE, "width": _WHOLE, "height": _WHOLE, "steps": _WHOLE, "guidance_scale": _NUMBER,
    "sampler": (str,), "negative_prompt": (str, type(None)),
}  # fmt: skip
"""What every record states of its image, by type; there may be more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """The record of one image."""

    model: str
    """Reference of the checkpoint or model that drew it."""
    content: str
    """SHA-256 (hex) over the files of the model's folder."""
    image: Mapping[str, Any]
    """The row's own values: prompt, negative prompt, seed, size, steps, guidance scale, sampler."""
    settings: Mapping[str, Any]
    """The job's other settings that decide bytes, such as the dtype and the encoding."""
    row_key: str
    """SHA-256 (hex) over all of the above."""

    @property
    def is_consistent(self) -> bool:
        """Whether the row key is that of the other values."""
        try:
            return key_of(key_base(self.content, self.settings, self.model), self.image) == self.row_key
        except (ValueError, RecursionError):  # what a job never writes, such as half a surrogate pair
            return False

    def to_json(self) -> str:
        """Return JSON that is safe in UTF-8 and, once escaped, in XML: characters that are not are JSON escapes."""
        document = {
            "format": FORMAT, "model": self.model, "content": self.content, "image": dict(self.image),
            "settings": dict(self.settings), "row_key": self.row_key,
        }  # fmt: skip
        text = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def key_base(content: str, settings: Mapping[str, Any], model: str | None = None) -> Any:
    """Return the hash that the keys of a job begin with.

    Args:
        content: digest of the model's content.
        settings: the job's settings that decide bytes.
        model: the model's reference, where files state it.
    """
    named = {} if model is None else {"model_ref": model}
    return hashlib.sha256(files.canonical_json({"model": content, **named, **settings}))


def key_of(base: Any, image: Mapping[str, Any]) -> str:
    """Return the row key (hex) of a row's values."""
    whole = base.copy()
    whole.update(files.canonical_json(image))
    return str(whole.hexdigest())


def parse_record(text: str) -> FileRecord:
    """Return the record that JSON from a file states, which anyone may have written.

    Raises:
        AltDiffusionError: it is too long, not JSON, or not such a record.
    """
    if len(text) > MAX_BYTES:
        raise _unusable(f"has more than {MAX_BYTES:,} characters")
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _unusable("is not JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _unusable(f"is not of the format {FORMAT}")
    image, settings, model = found.get("image"), found.get("settings"), found.get("model")
    if not isinstance(image, dict) or not isinstance(settings, dict) or not isinstance(model, str):
        raise _unusable("lacks image, settings or model")
    for name, types in _IMAGE.items():
        value = image.get(name)
        if type(value) not in types or (type(value) is int and not -(2**63) <= value < 2**63):
            raise _unusable(f"has no usable {name}")
        if type(value) is float and not math.isfinite(value):
            raise _unusable(f"has no usable {name}")
    for name in ("content", "row_key"):
        if not isinstance(found.get(name), str) or not DIGEST.fullmatch(found[name]):
            raise _unusable(f"has no SHA-256 as {name}")
    return FileRecord(model=model, content=found["content"], image=image, settings=settings, row_key=found["row_key"])


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _unusable(problem: str) -> AltDiffusionError:
    return AltDiffusionError("the file's record", problem, "look for the image's first copy; this one was altered")
