"""Lineage: the graph that is read from manifests, and its view in MLflow."""
