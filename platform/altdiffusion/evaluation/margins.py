"""What the gate accepts by default; apart from it, so that a command line can name them without loading SciPy."""

MARGIN = 0.05
"""Loss, as a share of the images, that is accepted in a language."""
ALPHA = 0.05
"""Level of the test, after the correction for the number of languages."""
