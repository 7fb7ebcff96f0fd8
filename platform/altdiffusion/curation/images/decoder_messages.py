"""What a worker and its decoder processes send each other; the worker needs no codec to know it."""

from __future__ import annotations

import struct

ASK = struct.Struct(">I")
"""A request: length of the body that follows."""
TELL = struct.Struct(">BIIIIqqBI")
"""An answer: status, stored width and height, original width and height, perceptual hash of the stored image and of
the whole one, what became of the colours stated (0: none are; else 1 + its place in PROFILED), length of what follows:
the stored file, or (UTF-8, one line each) reason and detail."""
DONE, REFUSED, READY = 0, 1, 2
