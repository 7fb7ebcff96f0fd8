"""How a network is made ready for training: precision, layout, attention, saved activations, sharding, compilation.

Names and shapes of its parameters stay as they are, so that checkpoints and exports do not depend on any of it.
"""

from altdiffusion.training.model.prepare import prepare_network

__all__ = ["prepare_network"]
