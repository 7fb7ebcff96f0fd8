"""Credentials: a config names them, they are read when they are used, and no output shows them.

A text may hold `${env:NAME}` or `${file:PATH}`. It is stored and printed as it is written; `reveal` inserts the value
where a connection is opened. All output passes through `redact`: errors, logs, journals, MLflow.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, unquote

_PLACEHOLDER = re.compile(r"\$\{(?P<kind>env|file):(?P<name>[^}]+)\}")
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<info>"
    r"(?:\$\{[^}]*\}|[^\s/?#'\"<>])*"
    # A password that was not escaped, such as an S3 key with a slash. Digits after the colon are a port.
    r"|(?:\$\{[^}]*\}|[^\s/?#@:'\"<>\[\]])*:(?!\d{0,5}[/?#])(?:\$\{[^}]*\}|[^\s@'\"<>])+"
    r")@"
)
_SECRET_WORD = (
    r"password|passwd|passphrase|pass|pwd|secret|token|jwt|auth|api[_\-]?key|access[_\-]?key(?:[_\-]?id)?"
    r"|account[_\-]?key|shared[_\-]?access[_\-]?key|credentials?|signature|sig"
    r"|x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid"
)
_PARAMETER = re.compile(
    rf"(?i)(?P<name>(?:[?&;#]|%3F|%26|%3B)(?:[\w\-]*[_\-])?(?:{_SECRET_WORD})(?:=|%3D))(?P<value>(?:(?!%26|%3B)[^&;#\s'\"])+)"
)
_HEADER = re.compile(
    r"(?i)(?P<name>\b(?:proxy-)?authorization\b['\"]?\s*[:=]\s*(?:b?['\"])?(?:(?:bearer|basic|digest|token)\s+)?)"
    r"(?P<value>[^\s'\",}]+)"
)
_SHAPE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w\-]{20,}|xox[abprs]-[\w\-]{20,}"
    r"|AIza[\w\-]{35})(?![\w\-])"
)
"""Tokens that can be recognised by the form that their issuers gave them."""
_NO_USERINFO = {"github"}
"""Schemes of fsspec whose addresses have a name, a colon and another name before the @."""
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[_\-.])(?:(?:pg)?password|passwd|passphrase|secret|token|credential|connection_string"
    r"|(?:api|access|account|secret|private|storage|auth)_?key(?:_?id)?)s?$|[_\-.](?:pwd|auth)$"
)
"""Matches at the end of a name: `HF_TOKEN` holds a secret, `RAY_AUTH_TOKEN_PATH`, `PWD` and `token_weight` do not."""
_ASSIGNMENT = re.compile(
    r"(?P<name>[\w.\-]+)(?P<sep>['\"]?\s*(?:=|:(?!//))\s*['\"]?)(?P<value>(?:(?<=')[^']+|(?<=\")[^\"]+|[^\s,'\"&;}]+\}?))"
)
"""A key and its value, as in an override, a variable, a header or JSON."""
_LEAST_CHARACTERS = 6
"""Shorter values of variables are not hidden, since hiding them would remove ordinary words from texts."""
_LEAST_REVEALED = 4
"""The same limit for values that a placeholder named, which are known to be secret."""
HIDDEN = "***"
_REVEALED: set[str] = set()


class MissingCredential(ValueError):
    """A placeholder names a variable or file that does not exist. The message has its name, never a value."""


def has_placeholder(text: str) -> bool:
    """Return whether a text names a credential by `${env:NAME}` or `${file:PATH}`."""
    return _PLACEHOLDER.search(text) is not None


def reveal(text: str) -> str:
    """Return the text with every `${env:NAME}` and `${file:PATH}` replaced by the value that it names.

    Raises:
        MissingCredential: the variable is not set, or the file cannot be read.
    """
    return _PLACEHOLDER.sub(_value, text)


def _value(match: re.Match[str]) -> str:
    name = match["name"]
    if match["kind"] == "env":
        value = os.environ.get(name)
        if not value:
            raise MissingCredential(f"the environment variable {name} is not set")
    else:
        try:
            with open(name, encoding="utf-8") as file:
                value = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise MissingCredential(f"the file {name} cannot be read ({type(error).__name__})") from None
        if not value:
            raise MissingCredential(f"the file {name} is empty")
    _REVEALED.add(value)
    guard_logs()  # from now on a library may log an address that holds the value
    return value


def holds_credential(text: str) -> bool:
    """Return whether a text holds a password, a key or a token in an address, apart from placeholders."""
    plain = _PLACEHOLDER.sub("", text)
    return any(map(_is_secret, _USERINFO.finditer(text))) or any(
        pattern.search(plain) for pattern in (_PARAMETER, _HEADER, _SHAPE)
    )


def _is_secret(match: re.Match[str]) -> bool:
    """Return whether the part before the @ is more than a name: a password, or on the web a token instead of a name.

    `abfs://container@account` does not hold a secret.
    """
    scheme = match["scheme"].lower().rpartition("+")[2]  # git+https
    user, colon, password = _PLACEHOLDER.sub("", match["info"]).partition(":")
    if scheme in _NO_USERINFO:
        return False
    return bool(password) or (bool(user) and not colon and scheme in ("http", "https"))


def is_secret_name(name: str) -> bool:
    """Return whether a key or variable of this name holds a credential rather than the location of one."""
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """Return the text without credentials: those in addresses, revealed ones, and those in the environment."""
    return redact_all(text)[0]


def redact_all(*texts: str) -> tuple[str, ...]:
    """Return texts as `redact` does; the environment, which takes most of the time, is looked at once."""
    spellings = _known_spellings(tuple(os.environ.items()), frozenset(_REVEALED))
    return tuple(_redacted(text, spellings) for text in texts)


def _redacted(text: str, spellings: Sequence[str]) -> str:
    text = _USERINFO.sub(_without_userinfo, text)
    text = _PARAMETER.sub(_without_value, text)
    text = _HEADER.sub(_without_value, text)
    text = _SHAPE.sub(HIDDEN, text)
    for spelling in spellings:
        if spelling in text:
            text = text.replace(spelling, HIDDEN)
    return text


@functools.lru_cache(maxsize=1)
def _known_spellings(environment: tuple[tuple[str, str], ...], revealed: frozenset[str]) -> tuple[str, ...]:
    """Return the forms of all known secrets, longest first; kept until a variable or a revealed value changes."""
    known = {value for value in revealed if len(value) >= _LEAST_REVEALED} | {
        value
        for name, value in environment
        if len(value) >= _LEAST_CHARACTERS and is_secret_name(name) and not _is_path(value)
    }
    return tuple(sorted({each for value in known for each in _spellings(value)}, key=len, reverse=True))


def redacted_command(arguments: Sequence[str]) -> list[str]:
    """Return a command line without credentials: also those that an option or a key of a secret's name gives.

    Hidden are `--token X`, `--api-key=X`, `tracking.password=X`, `{"token": "X"}` and everything that `redact` hides.
    Placeholders stay.
    """
    hidden: list[str] = []
    follows_secret = False
    for argument in arguments:
        is_option = argument.startswith("-")
        if follows_secret and not is_option:
            hidden.append(argument if _PLACEHOLDER.fullmatch(argument) else HIDDEN)
        else:
            hidden.append(redact(_ASSIGNMENT.sub(_without_assigned, argument)))
        follows_secret = is_option and "=" not in argument and _names_secret(argument)
    return hidden


def _names_secret(name: str) -> bool:
    plain = name.strip("-").replace("-", "_")
    return is_secret_name(plain) or bool(re.fullmatch(rf"(?i)(?:\w*[_.])?(?:{_SECRET_WORD})", plain))


def _without_assigned(match: re.Match[str]) -> str:
    value = match["value"]
    if not _names_secret(match["name"]) or value.startswith(("${env:", "${file:")):
        return match[0]
    return f"{match['name']}{match['sep']}{HIDDEN}"


def _is_path(value: str) -> bool:
    """Return whether a value is only the path of a credential, as in GOOGLE_APPLICATION_CREDENTIALS."""
    return os.path.isabs(value) and os.path.exists(value)


def _spellings(value: str) -> set[str]:
    """Return the forms in which libraries write a value: as it is, (un)escaped for an address, in JSON, in Python."""
    return {
        value,
        quote(value, safe=""),
        quote(value),
        quote_plus(value),
        json.dumps(value)[1:-1],
        repr(value)[1:-1],
    } | ({unquote(value)} if "%" in value else set())


def _without_value(match: re.Match[str]) -> str:
    return match[0] if _PLACEHOLDER.fullmatch(match["value"]) else f"{match['name']}{HIDDEN}"


def _without_userinfo(match: re.Match[str]) -> str:
    return f"{match['scheme']}://{HIDDEN}@" if _is_secret(match) else match[0]


def guard_outputs() -> None:
    """Hide credentials in what this process logs from now on, and in the traceback that may end it."""
    guard_logs()
    sys.excepthook = _print_exception


def guard_logs() -> None:
    """Hide credentials in what this process logs from now on, for every library."""
    if getattr(logging.getLogRecordFactory(), "guards", False):
        return
    before = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        new = before(*args, **kwargs)
        try:
            text = new.getMessage()
        except (TypeError, ValueError):  # a wrong format string, which logging itself reports
            return new
        new.msg, new.args = redact(text), ()  # without arguments, a % in the text is not read as a format
        return new

    record.guards = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
