// The CPU kernel for AVX2.
#define ROPE_ISA avx2
#define ROPE_VECTOR 32
#include "cpu/kernel.h"
