"""Plans: a config becomes the pipeline steps that a job completes. Planning is pure and does no I/O."""
