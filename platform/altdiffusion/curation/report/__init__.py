"""report.html: one page that shows a person what a curation read, kept and dropped."""
