"""What a run is: every name in its config is pinned, checked and recorded."""
