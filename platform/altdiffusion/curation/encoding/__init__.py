"""From images and captions to latents and token ids."""
