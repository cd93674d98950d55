// The CPU kernel for portable.
#define ROPE_ISA portable
#define ROPE_VECTOR 16
#include "cpu/kernel.h"
