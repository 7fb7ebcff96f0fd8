"""What every test sees: no network but loopback and npm, one thread per process, public packages in one cache."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

# A busy machine makes any example slow: no test of ours is about the time of one.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")

os.environ.setdefault("ALTDIFFUSION_DEMO_CACHE", str(Path(__file__).resolve().parents[1] / ".demo/cache"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)
