"""What the reasons of rejects mean, in a line each; and what must not be shown of some."""

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

_REASONS = {
    "url_scheme": "not an http or https address",
    "blocklist": "on a list of what must never come back",
    "takedown": "removed on request",
    "caption": "no letters in the text, or far too long",
    "size": "shorter side too small, or unknown",
    "aspect": "too long and thin",
    "similarity": "picture and text do not match well enough",
    "punsafe": "probably unsafe, or not scored",
    "pwatermark": "probably watermarked, or not scored",
    "aesthetic": "aesthetic score too low, or not scored",
    "language": "none of the configured languages, or not sure enough",
    "duplicate_hash": "same URL and text as a row that stays",
    "duplicate_url": "same link as a row that stays",
    "duplicate_image": "the same bytes as a picture that stays",
    "near_duplicate": "looks the same as a picture that stays",
    "bad_url": "the address cannot be used",
    "blocked_scheme": "redirected to another scheme than http(s)",
    "blocked_port": "a port that is not allowed",
    "blocked_address": "leads into a private or reserved network",
    "dns": "the host's name does not resolve",
    "connect": "no connection to the host",
    "tls": "no trusted TLS connection",
    "reset": "the host broke the connection off",
    "timeout": "not done within the time allowed",
    "too_many_redirects": "redirected too often",
    "bad_response": "not a proper HTTP answer",
    "content_encoding": "sent in an encoding that was not asked for",
    "too_large": "more bytes than allowed",
    "truncated": "the file ends early",
    "not_image": "not a picture",
    "format": "a picture format that is not taken",
    "dims": "too small, or too long and thin, once downloaded",
    "too_many_pixels": "more pixels than allowed",
    "decode": "the picture cannot be decoded",
    "http_403": "the host does not allow it",
    "http_404": "not there any more",
    "http_410": "not there any more",
    "http_429": "the host was asked too often",
}
_PREFIXES = {
    "opt_out:": "the site opts out of training",
    "robots": "the site's robots.txt forbids it",
    "http_4": "the host refuses",
    "http_5": "the host failed",
    "http_": "the host did not answer with a picture",
}
_WITHHELD = ("blocklist", "blocked_hash", "blocked_sha256", "takedown", "remove", "punsafe", "nsfw", "unsafe")


def explain(reason: str) -> str:
    """A line for people; empty for a reason that is not known here."""
    if reason in _REASONS:
        return _REASONS[reason]
    return next((text for prefix, text in _PREFIXES.items() if reason.startswith(prefix)), "")


def withheld(reason: str) -> bool:
    """Whether neither address nor image of such a row may be shown: what is blocked or unsafe is not passed on."""
    return any(word in reason for word in _WITHHELD)
