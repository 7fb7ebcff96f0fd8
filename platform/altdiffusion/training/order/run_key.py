"""The run key, by which all draws of a run are keyed together with its seed: two runs with one seed differ in batches.

Order of rows, mixture, noise, timesteps, dropped captions, mirrored images and queries are functions of (run key,
seed, position). Without the run in it, a stage that continues with the weights of the previous one would get the very
batches again that those weights were trained on, with the same noise.

A key is a digest of the run's name and stage: it holds no time, host or path, so a run that is started again has the
same one. It is in run.json and in the state.json of every checkpoint, with its format:

    2  seed = the first 64 bits of SHA-256(key, seed); a mixture's parts are drawn in sequence
    1  the seed alone (runs of earlier versions, whose records name no key); a mixture's parts are drawn in an order
       that is mixed within each turn of the mixture
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files

if TYPE_CHECKING:
    from altdiffusion.training.config import TrainConfig

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """The key of a run's draws."""

    format: int = FORMAT
    digest: str = ""
    """SHA-256 (hex); empty in format 1."""

    @classmethod
    def of(cls, config: TrainConfig) -> RunKey:
        """Return the key that a new run of this config has."""
        name = {"run": config.run} if config.key is None else {"key": config.key}
        return cls(digest=files.sha256_hex(files.canonical_json({"draws": FORMAT, "stage": config.stage, **name})))

    @classmethod
    def read(cls, tree: Mapping[str, Any], what: str) -> RunKey:
        """Return the key that a run.json or state.json names under `draws`; format 1 where it names none.

        Raises:
            AltDiffusionError: a later version wrote it.
        """
        draws = tree.get("draws")
        if draws is None:
            return SEED_ALONE
        if not isinstance(draws, Mapping):
            raise AltDiffusionError(
                f"{what}, key draws", f"is damaged: it is {str(draws)[:80]!r}", "restore the file from a copy"
            )
        if draws.get("format") != FORMAT or not isinstance(draws.get("key"), str):
            raise AltDiffusionError(
                f"{what}, key draws",
                f"has format {repr(draws.get('format'))[:80]}, this version knows {FORMAT}",
                "continue with the version that wrote it, or use another run name",
            )
        return cls(digest=draws["key"])

    def record(self) -> dict[str, Any]:
        """Return what run.json and state.json hold of it: nothing in format 1, as in earlier versions."""
        return {} if self.format == 1 else {"draws": {"format": self.format, "key": self.digest}}

    def seed(self, seed: int) -> int:
        """Return the seed of every draw, 64 bits, made from the config's seed."""
        if self.format == 1:
            return seed
        return int.from_bytes(hashlib.sha256(f"{self.digest}\x1f{seed}".encode()).digest()[:8], "big")


SEED_ALONE = RunKey(format=1)
"""The key of runs that earlier versions began."""
