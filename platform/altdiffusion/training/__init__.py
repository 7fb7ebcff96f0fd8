"""Training: which samples make up batch n, the loop, checkpoints, exports, the Ray launch."""
