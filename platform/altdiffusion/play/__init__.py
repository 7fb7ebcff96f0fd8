"""A page to try a model: one prompt, or one prompt in 18 languages side by side."""
