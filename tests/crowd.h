/* SPDX-License-Identifier: Apache-2.0
 * CUDA text of a kernel body, of (const float *in, float *out) and 1024 threads
 * a block, that needs more registers than there are: it spills. */
#ifndef CROWD_H
#define CROWD_H

#define CROWD_BODY                                                             \
    "    float x[160];\n"                                                      \
    "    _Pragma(\"unroll\") for (int i = 0; i < 160; i++)\n"                  \
    "        x[i] = in[i * 1024 + threadIdx.x];\n"                             \
    "    _Pragma(\"unroll 1\") for (int k = 0; k < 9; k++)\n"                  \
    "        _Pragma(\"unroll\") for (int i = 0; i < 160; i++)\n"              \
    "            x[i] = x[i] * x[(i + 7) % 160] + x[3];\n"                     \
    "    _Pragma(\"unroll\") for (int i = 0; i < 160; i++)\n"                  \
    "        out[i * 1024 + threadIdx.x] = x[i];\n"

#endif
