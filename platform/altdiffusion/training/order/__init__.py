"""Which samples make up batch n: a pure function of datasets, run key, seed and n."""
