"""Which language a caption is in: letters, a fastText model, word lists."""
