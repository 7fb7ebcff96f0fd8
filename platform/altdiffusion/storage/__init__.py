"""Datasets: content-addressed shards, ledger, manifests, on any fsspec URI."""
