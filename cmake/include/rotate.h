// Installed as rope_kernels/rotate.h: the CPU kernels and the jobs that they take.
#pragma once

#include "cpu/rotate.h"
