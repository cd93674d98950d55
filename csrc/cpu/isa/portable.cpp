// The CPU kernel for any CPU, by vectors of 16 bytes.
#define ROPE_ISA portable
#define ROPE_VECTOR 16
#include "cpu/kernel.h"
