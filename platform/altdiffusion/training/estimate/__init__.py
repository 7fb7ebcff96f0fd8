"""What a run will cost, estimated before it runs."""
