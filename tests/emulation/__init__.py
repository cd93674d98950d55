"""Ways to run the GPU kernels where there is no GPU."""
