"""What a run reports: throughput, utilisation, memory, from every rank to the person."""
