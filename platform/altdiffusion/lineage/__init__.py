"""Lineage: the graph made from manifests, and its view in MLflow."""
