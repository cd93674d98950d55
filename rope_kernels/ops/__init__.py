"""The operators ``rope_kernels::*``: schemas, gradients, and the direct path past torch's dispatcher."""
