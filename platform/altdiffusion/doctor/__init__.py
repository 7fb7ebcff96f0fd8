"""What a machine or a cluster must have before a job runs on it: checks, each with what was found and a remedy."""
