"""Documents that data and models need today: cards, a public summary, lineage events, signed images."""
