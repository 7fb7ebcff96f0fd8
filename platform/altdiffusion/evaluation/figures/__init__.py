"""Figures of an evaluation: SVG that is the same for the same values, in light and dark, readable on a phone."""
