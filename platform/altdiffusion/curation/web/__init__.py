"""The open web, guarded: addresses, connections, robots.txt, opt-outs, one fetch, and whose turn it is."""
