"""The CUDA kernels without a GPU: their launcher over a stand-in runtime, and the same source as plain C++."""
