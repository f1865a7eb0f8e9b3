"""What timed runs are measured with: clocks, counters, the machine."""
