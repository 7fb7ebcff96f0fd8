"""What a run says: throughput, utilisation, memory, from every rank to the person."""
