-- SPDX-License-Identifier: Apache-2.0
-- What CPU templates may call, and the numbers they name. Given by emit.c:
-- S spec, P promises, D device, steps, version; set by enter(): step, T, L.

-- An ISA is its lanes and registers (rows of the device), a file of
-- primitives, and per dtype the folder whose stages replace the common ones.
local isa = {
    portable = { prim = "portable" },
    avx2 = { prim = "avx2" },
    avx512 = { prim = "avx512" },
    avx512bf16 = { prim = "avx512", bf16 = "bf16dot" },
    neon = { prim = "neon" },
}

ISA = assert(isa[D.arch], "no CPU templates for arch " .. D.arch)
lanes = D.vector_bytes // 4 | 0
vector_bytes = lanes * 4
dim, dim_v = S.head_dim, S.head_dim_v
reduced = S.dtype ~= "f32"
masked = S.mask ~= "none" and S.mask ~= "program"
local by_dtype = S.pass == "fwd" and ISA[S.dtype] or false
override = by_dtype
paired = override == "bf16dot" -- products of two elements at once
diagonal = masked or S.alibi or programs.off -- the launch says where it lies
scored = S.softcap or S.alibi or programs.score -- s is more than scale * q.k
half_bytes = lanes * 2
-- Scores are in log2 units, up to a score program in natural ones.
unit = programs.score and "1" or "LOG2_E"
-- What turns q.k into these (softcap: into the argument of tanh_half).
q_scale = S.softcap and "a->scale / a->softcap * (2 * LOG2_E)"
    or programs.score and "a->scale" or "a->scale * LOG2_E"

o_at = dim_v % lanes > 0 and "least(e + i, DIM_V - 1)" or "(e + i)"

-- Numbers of one step's tile, under short names.
function enter(a_step)
    step, T, L = a_step, a_step.tile, a_step.scratch
    args = step.role .. "_args"
    split = step.role == "fwd_split"
    few = T.vecs == 0 -- few rows: the dims lie in the vectors
    many = not few
    micro = few and 1 or T.vecs and T.vecs * lanes
    nv = T.vecs
    override = few and "few" or by_dtype
    paired = override == "bf16dot"
    words = paired and (dim + 1) // 2 or dim
    -- Steps of the loop over d in one round: with 2 its exit is predicted.
    unroll = words % 2 == 0 and 2 or 1
    -- The last transposed block may hold fewer than `lanes` words.
    q_fits = words % lanes > 0 and "i < LANES && e + i < WORDS" or "i < LANES"
    -- Rows that are no whole vectors are read from padded copies.
    ragged = few and (dim % lanes > 0 or dim_v % lanes > 0)
end

-- The template of a step: its own, or that of the role named here.
local shared = { fwd_split = "fwd", merge = "combine", bwd_dkdv = "bwd", bwd_dq = "bwd" }
function template_of(role)
    return "cpu/" .. (shared[role] or role) .. ".c.in"
end

-- The tile of the backward's main step, for those that follow it.
function main_tile()
    return steps[2].tile
end

-- The entry of a role; those of bwd_dq and dtensor share all else with the main
-- step's.
function entry_of(role)
    for _, s in ipairs(steps) do
        if s.role == role then
            return s.entry
        end
    end
end

-- Runs a stage file, or the one that replaces it for this ISA and dtype.
function stage(name, ...)
    local own = override and "cpu/stage/" .. override .. "/" .. name .. ".c.in"
    if own and has_template(own) then
        return include(own, ...)
    end
    return include("cpu/stage/" .. name .. ".c.in", ...)
end

-- Runs stages in order: lists of "name" or "name:argument"; false is none.
function stages(...)
    for i = 1, select("#", ...) do
        for word in (select(i, ...) or ""):gmatch("%S+") do
            stage(word:match("^[^:]+"), word:match(":(.+)"))
        end
    end
end

-- `text` n times, joined; in the i-th, from 0, # stands for i and @ for
-- base + i: each(2, "p# = x[@]", ", ", 6) is "p0 = x[6], p1 = x[7]".
function each(n, text, separator, base)
    local out = {}
    for i = 0, n - 1 do
        out[#out + 1] = text:gsub("#", i):gsub("@", (base or 0) + i)
    end
    return table.concat(out, separator or ", ")
end

-- Loads and saves of up to a vector, with `left` elements to a row's end: a
-- whole one always where rows are whole vectors.
function load_some(at, left, of)
    local part = of % lanes > 0
    return part and ("load_up_to(%s, %s)"):format(at, left)
        or ("load(%s)"):format(at)
end

function save_some(at, x, left, of)
    local part = of % lanes > 0
    return part and ("save_up_to(%s, %s, %s)"):format(at, x, left)
        or ("save(%s, %s)"):format(at, x)
end

-- n, up to whole vectors.
function pad(n)
    return (n + lanes - 1) // lanes * lanes
end

-- Member of the argument struct for a launch argument: 8 bytes each.
function slot(p)
    local lists = { lens_k = "const i32 *", cu_seqlens_q = "const i32 *",
        cu_seqlens_k = "const i32 *", slopes = "const f32 *",
        sink = "const f32 *", lse = "f32 *", dlse = "const f32 *",
        dsink = "f32 *", spec = "const void *", parts = "const struct part *" }
    local kinds = { pointer_in = "const elem *", pointer_out = "elem *",
        length = "i64 ", stride = "i64 ", scalar = "f32 ", work = "f32 *" }
    local tensor = p.name:match("^d?tensor_") and
        { pointer_in = "const void *", pointer_out = "f32 *" } or kinds
    local high = p.kind == "scalar" and ", " .. p.name .. "_high" or ""
    return (lists[p.name] or tensor[p.kind] or kinds[p.kind]) .. p.name .. high
end

-- (2^x - 1) / x on [-1/2, 1/2], highest power first: 2^x to 9.1e-8, or to
-- 1.0e-4 where the output keeps 11 bits or fewer; 2^0 is exactly 1.
local coarse = reduced and S.pass ~= "merge" -- what is merged may be f32
exp2_rest = coarse and { "0.242211014f", "0.693282902f" }
    or { "0.00967151299f", "0.0555073358f", "0.240222424f", "0.693147004f" }
exp2_first = coarse and "0.0550089516f" or "0.00132647285f"
exp2_first = "all(" .. exp2_first .. ")"

-- Rounds of an n x n transpose: at distance h, rows i and i + h swap the
-- blocks that lie off the diagonal.
function transpose_rounds(n)
    local out, h = {}, n // 2
    while h > 0 do
        local low, high, swaps = {}, {}, {}
        for l = 0, n - 1 do
            low[#low + 1] = l & h == 0 and l or n + l - h
            high[#high + 1] = l & h == 0 and l + h or n + l
            if l & h == 0 then
                swaps[#swaps + 1] = ("swap%d(&a%d, &a%d);"):format(h, l, l + h)
            end
        end
        out[#out + 1] = { h = h, low = table.concat(low, ", "),
            high = table.concat(high, ", "),
            swaps = table.concat(swaps, " ") }
        h = h // 2
    end
    return out
end

-- Statements that turn x<g> .. x<g + lanes - 1> into x<g>, whose lane l is the
-- sum of all lanes of x<g + l>.
function across(x, g)
    local out = {}
    for _, t in ipairs(transpose_rounds(lanes)) do
        for l = g, g + t.h - 1 do
            out[#out + 1] = (("A = __builtin_shufflevector(A, B, LOW) +\n" ..
                "            __builtin_shufflevector(A, B, HIGH);")
                :gsub("LOW", t.low):gsub("HIGH", t.high)
                :gsub("A", x .. l):gsub("B", x .. l + t.h))
        end
    end
    return table.concat(out, "\n        ")
end

-- A misspelt name is an error, not nil.
setmetatable(_G, { __index = function(_, name)
    error("no such name: " .. tostring(name), 2)
end })
