// The CPU kernel for AVX-512 with bf16 instructions.
#define ROPE_ISA avx512_bf16
#define ROPE_VECTOR 64
#include "cpu/kernel.h"
