// Installed as rope_kernels/frequency.h: the mathematics of a rotation.
#pragma once

#include "core/frequency.h"
