"""Plans: a config becomes the pipeline steps of work to do. Pure; no I/O."""
