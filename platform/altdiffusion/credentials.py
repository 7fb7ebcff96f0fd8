"""Credentials: a config names them, they are read when they are used, and no output shows them.

A text may hold `${env:NAME}` or `${file:PATH}`. It is stored and printed as it is written; `reveal` puts the value in
where a connection is opened. `redact` is what everything passes on its way out: errors, logs, journals, MLflow.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from types import TracebackType
from typing import Any

_PLACEHOLDER = re.compile(r"\$\{(?P<kind>env|file):(?P<name>[^}]+)\}")
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<info>(?:\$\{[^}]*\}|[^\s/?#'\"<>])*)@")
_SECRET_WORD = (
    r"password|passwd|pwd|secret|token|api_?key|access_?key(?:_?id)?|account_?key|credentials?|signature|sig"
    r"|x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid"
)
_PARAMETER = re.compile(rf"(?i)(?P<name>[?&;](?:[\w\-]*[_\-])?(?:{_SECRET_WORD})=)(?P<value>[^&;#\s'\"]+)")
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[_\-.])(?:password|passwd|secret|token|(?:api|access|account|secret|private)_?key(?:_?id)?|credential)s?$"
)
"""At the end of a name: `HF_TOKEN` is one, `RAY_AUTH_TOKEN_PATH` and `token_weight` are not."""
_LEAST_LETTERS = 6
"""Shorter values are not looked for in texts: they would blot out ordinary words."""
HIDDEN = "***"
_REVEALED: set[str] = set()


class MissingCredential(ValueError):
    """A placeholder names a variable or file that is not there. The text names it, never a value."""


def reveal(text: str) -> str:
    """Return the text with every `${env:NAME}` and `${file:PATH}` replaced by what it names.

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
    guard_logs()  # from here on a library may log an address that holds it
    return value


def holds_credential(text: str) -> bool:
    """Whether a text, placeholders aside, holds a password, a key or a token in an address."""
    return any(map(_is_secret, _USERINFO.finditer(text))) or bool(_PARAMETER.search(_PLACEHOLDER.sub("", text)))


def _is_secret(match: re.Match[str]) -> bool:
    """Whether what stands before the @ is more than a name: a password, or for the web a token in place of a name.

    `abfs://container@account` has no secret.
    """
    user, colon, password = _PLACEHOLDER.sub("", match["info"]).partition(":")
    return bool(password) or (bool(user) and not colon and match["scheme"].lower() in ("http", "https"))


def is_secret_name(name: str) -> bool:
    """Whether a key or variable of this name holds a credential rather than where to find one."""
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """Return the text without credentials: those in addresses, those revealed, those in the environment."""
    text = _USERINFO.sub(_without_userinfo, text)
    text = _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
    known = _REVEALED | {value for name, value in os.environ.items() if is_secret_name(name)}
    for value in sorted(known, key=len, reverse=True):
        if len(value) >= _LEAST_LETTERS and value in text:
            text = text.replace(value, HIDDEN)
    return text


def _without_userinfo(match: re.Match[str]) -> str:
    return f"{match['scheme']}://{HIDDEN}@" if _is_secret(match) else match[0]


def guard_outputs() -> None:
    """Hide credentials in what this process logs from now on, and in the traceback that may end it."""
    guard_logs()
    sys.excepthook = _print_exception


def guard_logs() -> None:
    """Hide credentials in what this process logs from now on, whichever library logs it."""
    if getattr(logging.getLogRecordFactory(), "guards", False):
        return
    before = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = before(*args, **kwargs)
        try:
            text = made.getMessage()
        except (TypeError, ValueError):  # a wrong format string: logging itself reports it
            return made
        made.msg, made.args = redact(text), ()  # without arguments, a % in it is not read as a format
        return made

    record.guards = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
