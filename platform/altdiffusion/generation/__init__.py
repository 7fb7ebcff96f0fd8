"""Generation: prompts to images, the same bytes for a row whatever the batch."""
