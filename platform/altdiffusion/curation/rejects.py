"""Why curation drops rows: every reject reason, once.

Code names a reason by its constant here, so that mypy finds a name that does not exist. The names are stored in
rejects, ledgers and manifests and never change; the sentences are for people (report.html, docs/rejects.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.execution.reject_reasons import Reason, Reasons, rejects_table

KNOWN = Reasons()
"""Every reason by its name, but for those of the open family `http_<status>`."""
_reason = KNOWN.define

# Select: the numbers that came with the link, then its texts.
SIZE = _reason("size", "the shorter side is too small, or a side is unknown")
ASPECT = _reason("aspect", "the image is too long and thin, or a side is unknown")
SIMILARITY = _reason("similarity", "image and text do not match well enough, or that was not scored")
PUNSAFE = _reason("punsafe", "the image is probably unsafe, or that was not scored", withheld=True)
PWATERMARK = _reason("pwatermark", "the image probably has a watermark, or that was not scored")
AESTHETIC = _reason("aesthetic", "the aesthetic score is too low, or missing")
URL_SCHEME = _reason("url_scheme", "the address is not an http or https link")
BLOCKLIST = _reason("blocklist", "the link, its domain, the row or the image is on a blocklist", withheld=True)
CAPTION = _reason("caption", "the caption has no letters, or is far too long")
LANGUAGE = _reason("language", "the text is in none of the wanted languages, or the language is not certain enough")

# Deduplicate and balance.
DUPLICATE_HASH = _reason("duplicate_hash", "another row with the same URL and text stays")
DUPLICATE_URL = _reason("duplicate_url", "another row with the same link stays")
SIMILARITY_QUANTILE = _reason("similarity_quantile", "the similarity is below the share of the language that stays")
BALANCE = _reason("balance", "the row was not drawn: its language has more rows than are wanted")

# Download: the link and the connection.
BAD_URL = _reason("bad_url", "the address cannot be used")
BLOCKED_SCHEME = _reason("blocked_scheme", "the link leads to a scheme other than http and https")
BLOCKED_PORT = _reason("blocked_port", "the link leads to a port that is not allowed")
BLOCKED_ADDRESS = _reason("blocked_address", "the link leads into a private or reserved network")
DNS = _reason("dns", "the host's name does not resolve")
CONNECT = _reason("connect", "the host accepts no connection")
TLS = _reason("tls", "no trusted TLS connection to the host is possible")
RESET = _reason("reset", "the host closed the connection early")
TIMEOUT = _reason("timeout", "the download did not finish within the time allowed")
HOST_BUSY = _reason("host_busy", "the host asked for a longer wait than the job allows")
TOO_MANY_REDIRECTS = _reason("too_many_redirects", "the link was redirected too often")
ROBOTS_UNREACHABLE = _reason("robots_unreachable", "the site's robots.txt could not be read, so nothing was fetched")
OPT_OUT_ROBOTS = _reason("opt_out:robots", "the site's robots.txt forbids the download")
OPT_OUT_X_ROBOTS_TAG = _reason("opt_out:x-robots-tag", "the site opts out of training (X-Robots-Tag)")
OPT_OUT_TDM = _reason("opt_out:tdm-reservation", "the site opts out of text and data mining (tdm-reservation)")
OPT_OUT_CONTENT_USAGE = _reason("opt_out:content-usage", "the site opts out of training (Content-Usage)")

# Download: the answer and the file.
BAD_RESPONSE = _reason("bad_response", "the host's answer is not valid HTTP")
CONTENT_ENCODING = _reason("content_encoding", "the answer has an encoding that was not asked for")
TOO_LARGE = _reason("too_large", "the file has more bytes than allowed")
TRUNCATED = _reason("truncated", "the file ends early")
NOT_IMAGE = _reason("not_image", "the file is not an image")
FORMAT = _reason("format", "the image has a format that is not accepted")
DIMS = _reason("dims", "the downloaded image is too small, or too long and thin")
TOO_MANY_PIXELS = _reason("too_many_pixels", "the image has more pixels than allowed")
DECODE = _reason("decode", "the image cannot be decoded")
DECODE_TIMEOUT = _reason("decode_timeout", "decoding the image took too long")
DECODER_CRASH = _reason("decoder_crash", "the image made the decoder crash")
MEMORY_LIMIT = _reason("memory_limit", "decoding the image needs more memory than allowed")
CONTENT_CHANGED = _reason("content_changed", "the link gives another image than the source states")

# Import: images of one's own.
NO_CAPTION = _reason("no_caption", "the image has no caption")
CAPTION_BYTES = _reason("caption_bytes", "the caption is not text in the stated encoding")
LANGUAGE_LABEL = _reason("language_label", "the source states no language for the caption, or one that is not wanted")
NO_IMAGE = _reason("no_image", "the source names an image that it does not hold")
UNSAFE_PATH = _reason("unsafe_path", "the name or a link of the file leads out of the source")
SOURCE_FAILED = _reason("source_failed", "the source states that its own download of the image failed")
DUPLICATE_ROW = _reason("duplicate_row", "another row with the same image and caption stays")

# Distinct and takedown.
DUPLICATE_IMAGE = _reason("duplicate_image", "another image of the same bytes stays")
NEAR_DUPLICATE = _reason("near_duplicate", "another image that looks the same stays")
TAKEDOWN = _reason("takedown", "the row was removed on request", withheld=True)  # as storage.removal.REASON

# Encode.
BUCKET = _reason("bucket", "the image is nearest to another shape, and is in that shape's dataset")
FOR_VALIDATION = _reason(
    "for_validation", "the image is held out from training, and is in the dataset of held-out ones"
)
FOR_TRAINING = _reason("for_training", "the image is for the training, and is in the dataset without held-out ones")
RESOLUTION = _reason("resolution", "the image is smaller than the resolution")
NSFW = _reason("nsfw", "the NSFW score is too high, or missing", withheld=True)
WATERMARK = _reason("watermark", "the watermark score is too high, or missing")

# Parallel texts.
TEXT = _reason("text", "a text is missing, too long, or has too few letters")
SCORE = _reason("score", "the source's score of the pair is too low, or missing")
IDENTICAL = _reason("identical", "the translation is the text itself")
LENGTH_RATIO = _reason("length_ratio", "one text is far longer than the other")
CAPTION_LANGUAGE = _reason("caption_language", "the English text is not English, or that is not certain enough")
DUPLICATE = _reason("duplicate", "an equal pair stays")

NONE = Reason("")
"""The reason of a row that was not dropped."""

_STATUS = re.compile(r"http_([0-9]{1,3})")
_STATUSES = {
    403: "the host refuses access",
    404: "the host no longer has the file",
    410: "the host no longer has the file",
    429: "the host was asked too often",
}
_CLASSES = {
    1: "the host changes to another protocol",
    2: "the host's answer has no image, or a part of one",
    3: "the host redirects, but states no usable address",
    4: "the host refuses the request",
    5: "the host failed",
}


def http_status(status: int) -> Reason:
    """Return the reason of an answer that brings no image, by its HTTP status."""
    sentence = _STATUSES.get(status) or _CLASSES.get(status // 100, "the host's answer has an unknown status")
    return Reason(f"http_{status}", sentence)


def find(name: str) -> Reason | None:
    """Return the reason of a name that was stored; None for one that is not known."""
    status = _STATUS.fullmatch(name)
    return http_status(int(status[1])) if status else KNOWN.get(name)


def explain(name: str) -> str:
    """Return the sentence of a reason; empty for one that is not known."""
    reason = find(name)
    return reason.sentence if reason is not None else ""


def withheld(name: str) -> bool:
    """Return whether neither address nor image of such a row may be shown; true for a reason that is not known."""
    reason = find(name)
    return reason is None or reason.withheld


class Refused(Exception):
    """A link that is not fetched, or a file that is not taken: `reason` is counted, `detail` is for people."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def coded(reasons: Sequence[Reason], codes: npt.NDArray[Any]) -> pa.ChunkedArray:
    """Return the reason of each row, string.

    Args:
        reasons: an operator's reasons, in the order in which they are asked.
        codes: [N] 1 + the place of each row's reason in `reasons`.
    """
    return pa.chunked_array([pa.array(reasons, pa.string()).take(pa.array(codes - 1))])


def rejected(
    unit_id: str, table: pa.Table, rows: Any, reason: Reason | Any, *, first: int = 0, detail: Any = None
) -> pa.Table:
    """Return some rows of a table as a REJECTS table.

    Args:
        table: what identifies the rows is taken from its columns `sample_id`, `url` and `language`, as far as it has
            them.
        rows: int64 [N], ascending.
        reason: of all rows, or [N].
        first: the unit's number of the table's first row.
        detail: [N] or none.
    """
    places = np.asarray(rows, np.int64)
    known = [name for name in ("sample_id", "url", "language") if name in table.column_names]
    gone = table.select(known).take(pa.array(places))
    each = [reason] * len(places) if isinstance(reason, Reason) else reason
    return rejects_table(
        unit_id, row=places + first, reason=each, detail=detail, **{name: gone[name] for name in known}
    )
