"""Single image files outside a dataset: the record that a generated one carries, and the perceptual hash of any."""
