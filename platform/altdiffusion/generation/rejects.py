"""Why generation drops rows."""

from __future__ import annotations

from altdiffusion.execution.rejects import Reasons

KNOWN = Reasons()
"""Every reason by its name."""

NOT_FINITE = KNOWN.define("not_finite", "the networks gave NaN or infinity, so there is no image")
