"""The operators ``rope_kernels::*``: schemas, gradients, and the fast path that skips torch's dispatcher."""
