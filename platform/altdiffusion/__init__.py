"""AltDiffusion Platform: curate, encode, train, generate and evaluate an 18-language text-to-image model on Ray."""

__version__ = "0.1.0"
