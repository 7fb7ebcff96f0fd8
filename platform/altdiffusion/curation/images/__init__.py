"""Images as bytes: their headers, their decoding in child processes, their hashes and duplicates."""
