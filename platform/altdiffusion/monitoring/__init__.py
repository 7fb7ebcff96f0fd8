"""What operators watch: metrics for Prometheus, and log lines as JSON."""
