"""What a machine with a CUDA device checks: ``make gpu-check``."""
