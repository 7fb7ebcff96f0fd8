"""From pictures and captions to latents and token ids."""
