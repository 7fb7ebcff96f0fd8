"""From sources to candidate links: read, filter, deduplicate, balance, take down."""
