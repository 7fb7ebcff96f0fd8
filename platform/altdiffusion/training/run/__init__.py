"""What a run is: every name in its config pinned, checked and recorded."""
