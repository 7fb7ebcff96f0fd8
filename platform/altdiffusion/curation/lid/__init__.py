"""What language identification rests on: words and their letters, a fastText model, word lists."""
