// The CPU kernel for avx512.
#define ROPE_ISA avx512
#define ROPE_VECTOR 64
#include "cpu/kernel.h"
