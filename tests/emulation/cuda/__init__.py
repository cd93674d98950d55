"""The CUDA kernels without a GPU: their launcher on an emulated runtime, and the same source as plain C++."""
