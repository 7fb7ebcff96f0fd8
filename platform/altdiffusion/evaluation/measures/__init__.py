"""Measures of generated images: distances between sets of images, and how well an image fits its text."""
