"""Execution: where units run - in this process, or on Ray Data."""
