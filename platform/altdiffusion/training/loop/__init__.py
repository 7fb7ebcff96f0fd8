"""The training loop, what it saves and what it measures."""
