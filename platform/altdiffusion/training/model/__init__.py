"""How a network is made ready for training: precision, layout, attention, what the backward pass keeps, compilation.

Names and shapes of its parameters stay as they are, so that a checkpoint or an export does not know of any of it.
"""

from altdiffusion.training.model.prepare import prepare_network

__all__ = ["prepare_network"]
