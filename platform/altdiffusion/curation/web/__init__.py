"""The open web, guarded: one form of a URL, blocklists, connections, robots.txt, opt-outs, the fetch and its turns."""
