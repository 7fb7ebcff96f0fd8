"""What native libraries write to the terminal."""

from __future__ import annotations

import os

import pytest

from altdiffusion.terminal import without_noise


def test_marked_lines_are_left_out_and_all_others_stay(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), without_noise(b"NOISE"):
        os.write(2, b"first\na NOISE line\nlast\n")
        raise KeyError
    os.write(2, b"NOISE outside\n")
    assert capfd.readouterr().err == "first\nlast\nNOISE outside\n"
