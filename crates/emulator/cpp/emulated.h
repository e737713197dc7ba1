// What gpu.cuh is to nvcc, for the host's compiler: kernels that include it
// become functions of the emulator.
#pragma once

#include "atomics.h"
#include "block.h"
#include "matrix.h"
#include "system.h"
#include "warp.h"
