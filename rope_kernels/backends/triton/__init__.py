"""The Triton backend: kernels, launch plans, and the constants that are made on the host."""
