"""The rows of the benchmarks: what is timed or counted, on which shapes, against whom."""
