"""What goes wrong while a run goes on, and what it costs: notices, stalls, spikes, failures, goodput."""
