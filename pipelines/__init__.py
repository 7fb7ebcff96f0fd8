"""Plans: a config becomes the boundaries of work to do. Pure; no I/O."""
