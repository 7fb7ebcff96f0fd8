"""From sources to candidate links: read, filter, deduplicate, balance, block, take down."""
