/* SPDX-License-Identifier: Apache-2.0
 * What templates see of a spec's programs. */
#ifndef ATTNC_EMIT_PROGRAM_H
#define ATTNC_EMIT_PROGRAM_H

#include "luaapi.h"
#include "program.h"

/* Sets the globals
 *   programs = {keep, score, exact: booleans; tensors = {{name, dtype, rank,
 *               grad, parted}, ..}; grads = {{tensor, index = {"b" .. "k" |
 *               "const" | "expr", ..}}, ..}; owned, split = letters of b h q,
 *               see grad_share; sums = TENSOR_SUMS}
 *     exact: the loop bounds of keep say all, no tile needs a verdict
 *     listed, block: which of `tensors` lists all blocks that may be seen, bits
 *     by b, h, block of q, block of k, and their side; nil: none
 *   program(what, show [, options]) -> C text
 *     what: "keep" | "score" | "grad"
 *     show: "entry" | "row" | "key" | "pair" | "dout": the statements of that
 *           stage; "dout": those that take the gradient of the result
 *           "value": a root after its statements, an expression
 *           "bounds", "bounds_entry": loop bounds of keep, the statements for
 *           what they take; "verdict", "verdict_entry": of a tile, likewise
 *     options: lanes, rows: letters of b h q k s d (dout), as in ProgramC;
 *           strips (any text): as in ProgramC; prefix; b h q k s nq nk off
 *           dout: C for these operands; of grad
 *           root: "score" | "ds" | i, the gradient of the i-th read; index =
 *           dim with it: an index of that read instead */
void emit_programs(lua_State *L, const LuaApi *api, const Plan *p);

/* Of the state that emit.c runs. */
const LuaApi *emit_api(lua_State *L);
const Plan *emit_plan(lua_State *L);

#endif
