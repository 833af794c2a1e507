-- SPDX-License-Identifier: Apache-2.0
-- What CUDA templates may call, and the numbers they name. Given by emit.c:
-- S spec, P promises, D device, steps, version; set by enter(): step, T, L.

elem_bytes = S.dtype == "f32" and 4 or 2
masked = S.mask ~= "none" and S.mask ~= "program"
diagonal = masked or S.alibi or programs.off -- the launch has a diagonal
has_programs = programs.keep or programs.score
exact = programs.keep and programs.exact -- loop bounds say all of keep
verdicts = programs.keep and not exact -- each tile is asked for one
cuts = masked or programs.keep -- rows see some keys of a tile and not others
hides = cuts or programs.score -- whose score may be -inf
partial_below = S.mask == "window" or exact -- tiles before the full ones
tensor_grads = S.tensor_grads ~= 0
key_head = tensor_grads and "w->key_head" or "w->head"
scored = S.softcap or S.alibi or programs.score -- scores change before the softmax
unit = programs.score and "1.0f" or "LOG2_E" -- of scores: natural, or log2
precise = S.dtype == "f32"
-- Of two numbers in 32 bits (or one): the exponents, and the last bit of
-- each, whose sum reaches the sign where a number is Inf or NaN.
exponents = { f16 = "0x7c007c00u", bf16 = "0x7f807f80u", f32 = "0x7f800000u" }
last_bits = { f16 = "0x04000400u", bf16 = "0x00800080u", f32 = "0x00800000u" }
signs = { f16 = "0x80008000u", bf16 = "0x80008000u", f32 = "0x80000000u" }
emulated = D.prims == "emu"

tensor_names = { "q", "k", "v", "o" }
some_ends = false
for _, s in ipairs(steps) do some_ends = some_ends or s.low + s.high > 0 end

-- Numbers of one step's tile, under short names.
function enter(a_step)
    step, T, L = a_step, a_step.tile, a_step.scratch
    args = "Args_" .. step.role
    split = step.role == "fwd_split"
    threads = step.threads
    ends = step.low + step.high > 0 -- some rows, or keys, take longest
    if step.role == "combine" or step.role == "merge" then return end
    alone = T.heads > 0 -- a warp has a head for itself
    team = alone and 32 or threads -- that share a head
    mma_family = T.q_regs ~= nil
    q_regs = T.q_regs == 1
    variant = not mma_family and "fma" or precise and "tf32" or "half"
    in_tile = mma_family and S.dtype or "f32" -- type of K and V in shared memory
    -- Scores are scaled before the maximum is taken; else with the exponential.
    scaled = scored or not mma_family
    steps_32 = L.dim * elem_bytes // 32 -- of Q K^T, 32 bytes of a row each
    tail_16 = L.dim * elem_bytes % 32 == 16 -- and one of 16 bytes
    steps_q = steps_32 + (tail_16 and 1 or 0)
    -- No tile reaches past the last key, none has rows to spare.
    whole_k = P.mult_k % T.block_k == 0 and not S.varlen and not S.lens_k
    -- All keys of a head are one tile: there is no loop and nothing to prefetch.
    single = P.max_seqlen > 0 and P.max_seqlen <= T.block_k and not split
    peel = T.peel == 1 and not single and (cuts or not whole_k)
    whole_q = P.mult_q % T.block_q == 0 and not S.varlen
    tensors = {
        q = { rows = T.block_q, dim = S.head_dim, kept = L.dim, pitch = L.q_pitch },
        k = { rows = T.block_k, dim = S.head_dim, kept = L.dim, pitch = L.q_pitch },
        v = { rows = T.block_k, dim = S.head_dim_v, kept = L.dim_v, pitch = L.v_pitch },
        o = { rows = T.block_q, dim = S.head_dim_v, kept = L.dim_v, pitch = L.v_pitch },
    }
    for _, name in ipairs(tensor_names) do
        local x = tensors[name]
        x.name, x.bytes, x.kept_bytes = name, x.dim * elem_bytes, x.kept * elem_bytes
        x.whole = name == "q" and whole_q or name ~= "q" and whole_k
        x.align = math.max(P["align_" .. name], elem_bytes)
        x.size = mma_family and 16 or 4 * elem_bytes -- a chunk's, where it comes from
        x.piece = math.min(x.align, unit_of(x.bytes), x.size) -- of loads and stores
        x.pages = mma_family and pages(x.kept_bytes)
            or { { at = 0, width = x.pitch, chunks = x.kept // 4,
                swizzle = function() return "0" end } }
        x.chunks = 0 -- of 16 bytes, one thread's
        for i, p in ipairs(x.pages) do
            p.last = i == #x.pages
            -- From the first page of this width on.
            p.inside = i > 1 and x.pages[i - 1].width == p.width
                and x.pages[i - 1].inside + p.width or 0
            p.first, p.count = x.chunks, (x.rows * p.chunks + team - 1) // team
            p.left = x.bytes - p.at -- of the row's bytes, from here on
            -- Rows between chunks of a thread, where they share their place in a
            -- row and its swizzle.
            p.step = team % (8 * p.chunks) == 0 and team // p.chunks
            p.full = p.left >= p.chunks * x.size
            x.chunks = x.chunks + p.count
        end
        -- How it is copied: by cp.async, by loads and stores at once, or by
        -- loads that wait in registers until the tile is free.
        x.mode = D.cp_async == 1 and (x.align >= 4 and x.size == 16 and "async" or "direct")
            or name == "q" and "direct" or "held"
    end
    held = tensors.k.mode == "held"
end

-- Of any step, and which file says what it does.
function enter_step(a_step)
    local merges = a_step.role == "combine" or a_step.role == "merge"
    skeleton = merges and "combine" or "fwd"
    enter(a_step)
end

-- Runs a stage file, or the one that replaces it for this arithmetic.
function stage(name, ...)
    local own = "cuda/stage/" .. variant .. "/" .. name .. ".cu.in"
    if has_template(own) then return include(own, ...) end
    return include("cuda/stage/" .. name .. ".cu.in", ...)
end

-- The text where the condition holds; else nothing.
function when(condition, text) return condition and text or "" end

-- Stages by name, several to a text; false: none.
local function stages(...)
    for i = 1, select("#", ...) do
        for name in ((select(i, ...)) or ""):gmatch("%S+") do stage(name) end
    end
end

-- The code of a forward.
function forward_stages()
    stages "args team job row_ptr chunk walk"
    for _, name in ipairs { "q", "k", "v" } do stage("load", name) end
    stages("lanes open_state", mma_family and "place load_q",
        has_programs and "program/row_ids", "qk", scaled and "score",
        programs.score and "program/score", (masked or not whole_k) and "keep",
        programs.keep and "program/keep", verdicts and "program/tiles", "softmax",
        S.dropout and "drop", "pv", hides and "odd", not split and "out_ptr",
        split and "store_part" or "store", "sync tile open_tiles",
        "pipeline_" .. (held and "held" or L.k_stages .. "_" .. L.v_stages))
end

-- The sets of primitives that some step calls for.
function prim_parts()
    local parts = { "base", "memory", "warp" }
    for _, s in ipairs(steps) do
        if s.role == "bwd" and s.tile.dq > 1 then parts[4] = "between" end
    end
    return parts
end

-- C declaration of a launch argument's slot.
function slot(p)
    local lists = { lens_k = "const i32 *", cu_seqlens_q = "const i32 *",
        cu_seqlens_k = "const i32 *", slopes = "const float *",
        sink = "const float *", lse = "float *", dlse = "const float *",
        dsink = "float *", turns = "u32 *", ticket = "u32 *",
        parts = "const i64 *" }
    local kinds = { pointer_in = "const elem *", pointer_out = "elem *",
        length = "i64 ", stride = "i64 ", scalar = "float ", work = "float *" }
    if p.name:match "^d?tensor_" and p.kind:match "^pointer" then
        return (p.kind == "pointer_in" and "const void *" or "float *") .. p.name
    end
    local high = p.kind == "scalar" and ", " .. p.name .. "_high" or ""
    return (lists[p.name] or kinds[p.kind]) .. p.name .. high
end

-- The pages of a row of so many bytes: where each begins, its width and its
-- swizzle. A tile is kept page by page, [page][row][width]; chunk c of 16
-- bytes lies at c ^ swizzle, so that 8 rows of one chunk fill the banks once.
function pages(bytes)
    local swizzle = { [128] = "(%s & 7)", [64] = "(%s >> 1 & 3)",
        [32] = "(%s >> 2 & 1)", [16] = "0" }
    local out, at = {}, 0
    for _, width in ipairs { 128, 64, 32, 16 } do
        while bytes - at >= width do
            out[#out + 1] = { at = at, width = width, chunks = width // 16,
                swizzle = function(row) return swizzle[width]:format(row) end }
            at = at + width
        end
    end
    return out
end

-- Largest power of two that divides n, at most 16.
function unit_of(n)
    local u = 16
    while n % u ~= 0 do u = u // 2 end
    return u
end

-- The instruction of one 32-byte step: name, and whether it takes two.
mma = { f16 = D.cc >= 800 and "mma_m16n8k16_f16" or "mma_m16n8k8_f16",
    bf16 = "mma_m16n8k16_bf16", f32 = "mma_m16n8k8_tf32" }
mma = mma[S.dtype]
halved = D.cc < 800

-- A misspelt name is an error, not nil.
setmetatable(_G, { __index = function(_, name)
    error("no such name: " .. tostring(name), 2)
end })
