"""Whether what a run brings together fits: facts of every party, held against each other."""

from altdiffusion.training.run.fit.check import Parties, check_fit

__all__ = ["Parties", "check_fit"]
