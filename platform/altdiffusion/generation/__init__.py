"""Generation: prompts to images; a row gives the same bytes in every batch."""
