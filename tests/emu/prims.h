/* SPDX-License-Identifier: Apache-2.0
 * The emulated primitives inside a test program, so that small kernels are
 * plain functions of it. Include once, after defining ARCH. */
#define EMU_IN_PROGRAM
#include "../../templates/cuda/prim/emu/api.h.in"
#include "../../templates/cuda/prim/emu/base.h.in"
#include "../../templates/cuda/prim/emu/between.h.in"
#include "../../templates/cuda/prim/emu/memory.h.in"
#include "../../templates/cuda/prim/emu/warp.h.in"
