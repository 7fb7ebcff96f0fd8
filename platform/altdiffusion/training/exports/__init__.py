"""From a checkpoint to a model folder that stock diffusers opens, with its card."""
