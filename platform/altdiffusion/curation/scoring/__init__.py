"""Numbers about images: one pass of CLIP, heads on its embedding, classifiers of their own."""
