"""Damage to a file: one flipped bit."""

from __future__ import annotations

from pathlib import Path


def flip(path: Path, at: int | None = None) -> None:
    """Flip the lowest bit of the byte at `at`, which counts from the end if negative; without it, of the middle one."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)
