"""The training loop, its hooks, what it saves and what it measures."""
