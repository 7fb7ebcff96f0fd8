"""One answer of HTTP/1.1 (RFC 9110, RFC 9112), read from a connection to the byte.

Lenient in what it takes, strict in what may follow: an answer that departs from the grammar, or whose length could be
read in two ways, is still an answer as long as its body is one thing; but only a connection whose answer was beyond
doubt and read to its last byte carries another request (`Answer.is_read`). So no byte of one answer is ever part of
the next one's.

Interim answers (1xx; RFC 9110, 15.2) are skipped, however many in `INTERIM`; 101 was not asked for and ends it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from altdiffusion.curation.rejects import BAD_RESPONSE, TOO_LARGE, TRUNCATED, Refused, http_status

HEAD_BYTES = 1 << 16
"""The most that status lines and headers may have in all, interim ones included; trailers too."""
HEAD_LINES = 100
"""Header lines of one answer."""
INTERIM = 100
"""Interim answers before the final one."""
_LINE_BYTES = 1 << 16
_CHUNK_LINE_BYTES = 256
"""The most that the line of a chunk's size and extensions may have."""
_PIECE = 1 << 16
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\x00\r\n]*)?\r\n")
_LOOSE_STATUS = re.compile(rb"HTTP/1\.([0-9]+)[ \t]+([1-9][0-9][0-9])(?:[ \t][^\n]*)?\r?\n")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\x00\r\n]*)\r\n")
_LENGTH = re.compile(r"[0-9]{1,19}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_EMPTY = frozenset({204, 205, 304})
"""Statuses without a body. 205 must not have one either (RFC 9110, 15.3.6)."""


class Headers:
    """The header fields of an answer, in order; names are the same whatever their case."""

    def __init__(self) -> None:
        self._fields: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        """Append a field; several of one name stay apart."""
        self._fields.setdefault(name.lower(), []).append(value)

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of that name."""
        return self._fields.get(name.lower(), [default])[0]

    def get_all(self, name: str) -> list[str]:
        """Return all values of that name, in order."""
        return self._fields.get(name.lower(), [])

    def tokens(self, name: str) -> list[str]:
        """Return the members of a comma-separated list over all fields of that name, in lower case."""
        return [part.strip().lower() for value in self.get_all(name) for part in value.split(",") if part.strip()]

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in lower case."""
        return iter(self._fields)


class Reader(Protocol):
    """What comes on a connection."""

    def held_line(self, limit: int, /) -> bytes:
        """Return a line with its end, if all of it has come; else nothing."""

    async def readline(self, limit: int, /) -> bytes:
        """Return a line with its end; without, where it is longer than `limit` or the other side closes."""

    async def read(self, count: int, /) -> bytes:
        """Return so many bytes; fewer only where the other side closes."""


class Answer:
    """The final answer to one GET: `read_head` comes first, then `read` or `skip` for its body.

    Args:
        reader: what comes on the connection.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._left = HEAD_BYTES
        self._clean = True
        self.status = 100

    async def read_head(self) -> None:
        """Read status and headers, and those of interim answers in front of them.

        Raises:
            Refused: bad_response, http_101.
            EOFError: the other side closed before the head was whole.
        """
        number = 0
        while self.status < 200:
            if number > INTERIM:
                raise Refused(BAD_RESPONSE, f"more than {INTERIM} interim answers")
            self.status, self.headers = await self._head()
            if self.status == 101:
                raise Refused(http_status(101), "another protocol, not asked for")
            number += 1
        self._chunked, self._length = self._framing()
        self._body_is_read = self._length == 0
        self._body_is_whole = True

    @property
    def length(self) -> int | None:
        """Bytes of the body as stated; None where it is chunked or ends with the connection."""
        return self._length

    @property
    def is_read(self) -> bool:
        """Whether the connection can carry another request: nothing of this answer is left on it, beyond doubt."""
        return self._clean and self._body_is_read and "close" not in self.headers.tokens("Connection")

    async def read(self, max_bytes: int, *, cut: bool = False) -> bytes:
        """Return the body; call it once.

        Args:
            cut: of a longer body, return its beginning.

        Raises:
            Refused: too_large, truncated, bad_response.
        """
        if self._length is not None and self._length > max_bytes and not cut:
            raise Refused(TOO_LARGE, f"{self._length} bytes declared")
        self._body_is_whole = False
        if self._length is not None and self._length <= max_bytes:
            whole = await self._exactly(self._length)
            self._body_is_read = True
            return whole
        body = bytearray()
        async for piece in self._pieces(max_bytes):
            body += piece
            if len(body) > max_bytes:
                if cut:
                    return bytes(body[:max_bytes])
                raise Refused(TOO_LARGE, f"more than {max_bytes} bytes")
        self._body_is_read = self._chunked  # to its last byte: a longer one has been refused or cut
        return bytes(body)

    async def skip(self, waiting: int) -> None:
        """Read a body that is not wanted if that costs nothing: `waiting` bytes have already come, none was read."""
        if self._body_is_whole and self._clean and self._length is not None and self._length <= waiting:
            await self._exactly(self._length)
            self._body_is_read = True

    # The head:

    async def _head(self) -> tuple[int, Headers]:
        line = await self._line()
        match = _STATUS.fullmatch(line)
        if match is None:
            self._clean = False
            match = _LOOSE_STATUS.fullmatch(line)
        if match is None:
            raise Refused(BAD_RESPONSE, f"status line {line[:40]!r}")
        if int(match[1]) == 0:
            self._clean = False  # HTTP/1.0 closes
        return int(match[2]), await self._fields()

    async def _fields(self) -> Headers:
        headers = Headers()
        name, value = "", ""
        for _ in range(HEAD_LINES + 1):
            line = self._held_line() or await self._line()
            match = _FIELD.fullmatch(line)
            if match is None:
                if line[:1] in b" \t" and line.strip() and name:  # a folded value
                    self._clean = False
                    value += " " + _text(line)
                    continue
                if line == b"\r\n" or line == b"\n":
                    self._clean = self._clean and line == b"\r\n"
                    if name:
                        headers.add(name, value)
                    return headers
                self._clean = False
            if name:
                headers.add(name, value)
            if match is not None:
                name, value = match[1].decode("ascii"), _text(match[2])
            else:  # a line that is not a field: taken if it looks like one, else left out
                before, colon, after = line.partition(b":")
                name, value = (_text(before), _text(after)) if colon else ("", "")
        raise Refused(BAD_RESPONSE, f"more than {HEAD_LINES} header lines")

    def _held_line(self) -> bytes:
        line = self._reader.held_line(min(_LINE_BYTES, self._left))
        self._left -= len(line)
        return line

    async def _line(self) -> bytes:
        line = await self._reader.readline(min(_LINE_BYTES, self._left) + 1)
        self._left -= len(line)
        if self._left < 0 or len(line) > _LINE_BYTES:
            raise Refused(BAD_RESPONSE, f"more than {HEAD_BYTES} bytes of headers")
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    # The body:

    def _framing(self) -> tuple[bool, int | None]:
        """Return whether the body is chunked, and its length; None if it ends with the connection (RFC 9112, 6.3)."""
        codings = self.headers.tokens("Transfer-Encoding")
        lengths = [part.strip() for value in self.headers.get_all("Content-Length") for part in value.split(",")]
        if self.status in _EMPTY:
            states_a_body = codings or (self.status != 304 and set(lengths) - {"0"})  # 304: that of the image kept
            self._clean = self._clean and not states_a_body
            return False, 0
        if codings:
            if set(codings) == {"chunked"}:  # stated twice, it was done once
                self._clean = self._clean and not lengths and len(codings) == 1
                return True, None
            self._clean = False
            if codings != ["identity"]:
                raise Refused(BAD_RESPONSE, f"Transfer-Encoding {', '.join(codings)[:40]}")
        if not lengths:
            return False, None
        if not all(_LENGTH.fullmatch(value) for value in lengths) or len({int(value) for value in lengths}) > 1:
            raise Refused(BAD_RESPONSE, f"Content-Length {', '.join(lengths)[:40]}")
        return False, int(lengths[0])

    async def _exactly(self, count: int) -> bytes:
        """Return so many bytes in one piece."""
        data = await self._reader.read(count) if count else b""
        if len(data) != count:
            raise Refused(TRUNCATED, f"{len(data)} of {count} bytes")
        return data

    async def _pieces(self, max_bytes: int) -> AsyncIterator[bytes]:
        """Yield the pieces of a body whose length is not stated, or longer than wanted.

        No piece is longer than what is wanted and one byte.
        """
        if self._chunked:
            async for piece in self._chunks(max_bytes):
                yield piece
            return
        left = max_bytes + 1
        while left and (piece := await self._reader.read(min(_PIECE, left))):
            left -= len(piece)
            yield piece
        if left and self._length is not None:
            raise Refused(TRUNCATED, f"{max_bytes + 1 - left} of {self._length} bytes")

    async def _chunks(self, max_bytes: int) -> AsyncIterator[bytes]:
        left = max_bytes + 1
        while size := await self._chunk_size():
            wanted = min(size, left)
            piece = await self._reader.read(wanted)
            if len(piece) < wanted:
                raise Refused(TRUNCATED, "chunked body ends early")
            yield piece
            left -= size
            if left <= 0:  # more than was wanted, and so never read to its end
                return
            end = await self._reader.read(2)
            if end != b"\r\n":
                if len(end) < 2:
                    raise Refused(TRUNCATED, "chunked body ends early")
                raise Refused(BAD_RESPONSE, "chunk is longer than its size")
        self._left = HEAD_BYTES
        try:
            await self._fields()  # trailers: read over
        except EOFError:
            raise Refused(TRUNCATED, "chunked body ends early") from None

    async def _chunk_size(self) -> int:
        line = await self._reader.readline(_CHUNK_LINE_BYTES)
        match = _CHUNK.fullmatch(line)
        if match is None:
            if not line.endswith(b"\n") and len(line) < _CHUNK_LINE_BYTES:
                raise Refused(TRUNCATED, "chunked body ends early")
            raise Refused(BAD_RESPONSE, f"chunk size {line[:20]!r}")
        return int(match[1], 16)


def _text(value: bytes) -> str:
    return value.strip(b" \t\r\n").decode("latin-1")
