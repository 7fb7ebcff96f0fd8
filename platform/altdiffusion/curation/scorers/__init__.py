"""What looks at a picture: CLIP's embedding, heads on it, classifiers of their own."""
