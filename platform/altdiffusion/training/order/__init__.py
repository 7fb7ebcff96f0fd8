"""Which samples make up batch n: a pure function of datasets, seed and n; and which a checkpoint has seen."""
