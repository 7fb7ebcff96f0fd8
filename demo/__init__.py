"""The demo's real data: pictures with human-translated names, a LAION-shaped crawl, and its local server."""
