"""Datasets: content-addressed shards, ledgers and manifests on any fsspec URI."""
