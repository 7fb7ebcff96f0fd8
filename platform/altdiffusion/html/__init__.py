"""Pages for people: one HTML file each, from a template, that needs nothing else."""
