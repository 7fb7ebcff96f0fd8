"""A whole campaign on paper: what its jobs need, what that costs, and how it scales."""
