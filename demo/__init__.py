"""The demo's real data: images with human-translated names, a LAION-shaped crawl, and its local server."""
