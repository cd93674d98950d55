// The CPU kernel for AVX-512.
#define ROPE_ISA avx512
#define ROPE_VECTOR 64
#include "cpu/kernel.h"
