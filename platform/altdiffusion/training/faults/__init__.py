"""What goes wrong during a run, and what it costs: preemption notices, stalls, spikes, failures, goodput."""
