"""report.html: what a curation read, kept and dropped, for a person's eyes; one file that needs nothing else."""
