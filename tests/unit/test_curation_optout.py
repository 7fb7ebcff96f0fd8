"""Opt-out signals in headers, well-formed and not."""

from __future__ import annotations

from email.message import Message

import pytest

from altdiffusion.curation.web.optout import opt_out

AGENT = "OurBot/1.0 (mail@example.org)"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([("X-Robots-Tag", "noindex, nofollow")], None),
        ([("X-Robots-Tag", "NoAI")], "opt_out:x-robots-tag"),
        ([("X-Robots-Tag", "noindex"), ("x-robots-tag", "noimageai")], "opt_out:x-robots-tag"),
        ([("X-Robots-Tag", "ourbot: noai")], "opt_out:x-robots-tag"),
        ([("X-Robots-Tag", "otherbot: noai, noimageai")], None),
        ([("X-Robots-Tag", "otherbot: noai, ourbot: noimageai")], "opt_out:x-robots-tag"),
        ([("X-Robots-Tag", "*: noai")], "opt_out:x-robots-tag"),
        ([("X-Robots-Tag", "max-snippet: 5, noai")], "opt_out:x-robots-tag"),
        ([("X-Robots-Tag", ":::,,: ,\x7f")], None),
        ([("tdm-reservation", " 1 ")], "opt_out:tdm-reservation"),
        ([("TDM-Reservation", "0")], None),
        ([("Content-Usage", "train-ai=n")], "opt_out:content-usage"),
        ([("Content-Usage", "search=n, train-ai = N")], "opt_out:content-usage"),
        ([("Content-Usage", "train-ai=y")], None),
    ],
)
def test_the_signal_is_found(headers: list[tuple[str, str]], expected: str | None) -> None:
    message = Message()
    for name, value in headers:
        message[name] = value
    assert opt_out(message, AGENT) == expected
