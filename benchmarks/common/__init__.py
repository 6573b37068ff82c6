"""What several benchmarks share: the machine, evaluation sets, encoders, retrieval metrics."""
