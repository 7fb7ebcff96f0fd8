"""Whether the parties of a run fit together: the facts of each are compared."""

from altdiffusion.training.run.fit.check import Parties, check_fit

__all__ = ["Parties", "check_fit"]
