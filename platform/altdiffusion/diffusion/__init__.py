"""Networks, noise and objective. No Ray, no MLflow."""
