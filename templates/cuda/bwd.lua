-- SPDX-License-Identifier: Apache-2.0
-- What the templates of a backward may call besides, and its numbers. Rows of
-- its own stay with a block, x; the others, y, come in steps: keys and queries
-- in dK and dV (by_keys), queries and keys in dQ.

split = false
window = S.mask == "window"

-- Lengths of entry b, which begins at from.
local function length(a, name, from, b)
    local listed = ("length_in(%scu_seqlens_%s + %s + 1, %s, (i32)%sseqlen_%s)")
    if S.varlen then return listed:format(a, name, b, from, a, name) end
    return ("(i32)%sseqlen_%s"):format(a, name)
end
function queries(a, from, b) return length(a, "q", from, b) end
function keys(a, from, b) return length(a, "k", from, b) end

-- Lanes that share a row of so many bytes.
function lanes_for(bytes)
    local lanes = 1
    while lanes < 32 and lanes * 16 < bytes do lanes = 2 * lanes end
    return lanes
end

-- ALiBi in the score: s - slope * far.
alibi_args = when(S.alibi, ", float slope, float far")
alibi_term = when(S.alibi, " - slope * abs_f32(far)")
-- Dropout: a bit for each weight of a thread.
kept_args = when(S.dropout, ", u32 kept")
kept_bit = when(S.dropout, ", kept[i] >> j & 1")
open_kept = when(S.dropout, "u32 kept[LANE_ROWS]; draw_kept(w, b, l, lo, kept);")

-- All names that the two main steps share, each with code of its own.
bwd_names = {}
for name in ([[
    THREADS OWN OTHER ROWS X1 X2 Y1 Y2 TABLE STAGES STAGE_BYTES KEPT_1 KEPT_2 DIM_1 DIM_2 TILES_M
    LANE_ROWS SCORES OUTS_1 OUTS_2 LANES_OF_ROW TABLE_END TABLE_BEGIN TABLE_SLOPE TABLE_DIAGONAL
    P_TILE PITCH_1 PITCH_2 P_PITCH Scores Lane Sums Block meet_rows open_block is_partial
    copy_x1 copy_x2 copy_y1 copy_y2 copy_table load_others x1_at x2_at y1_at y2_at first_row
    row_of has_first has_second clear_sums open_lane clear_scores dots_1 dots_2 weigh drop
    weights put_weights add_1 add_2 odd clear_odd_1 clear_odd_2 put_1 put_2 save_1 save_2 store
    step draw_kept odd_sum add_odd
    DIM_2_LANES odd_in_sums close_sums own_is_odd
    word_of bits_1 bits_2 to_tf32
    DS DQ_M DQ_N DQ_UNITS DQ_PITCH ds_at put_ds dq_unit dq_first sum_dq put_dq turn_of give_dq
    clear_odd_own take_item Own load_own Turn step_verdict next_step bend RowIds row_ids
]]):gmatch("%S+") do bwd_names[#bwd_names + 1] = name end

function bwd_tile(name, tensor, dim, kept, rows, pitch)
    local align = { q = P.align_q, k = P.align_k, v = P.align_v, dout = P.align_o }
    local gradient = { q = "dq", k = "dk", v = "dv" }
    local x = { name = name, tensor = tensor, dim = dim, kept = kept, rows = rows,
        pitch = pitch, gradient = gradient[tensor] or "none" }
    x.bytes, x.kept_bytes = dim * elem_bytes, kept * elem_bytes
    x.whole, x.tail = x.kept_bytes // 32, x.kept_bytes % 32 == 16 -- steps of 32 bytes
    x.align = math.max(align[tensor], elem_bytes)
    x.size = mma_family and 16 or 4 * elem_bytes -- of a chunk, where it comes from
    x.async = D.cp_async == 1 and x.align >= 4 and x.size == 16
    x.fetched = math.min(x.align, unit_of(x.bytes), x.size)
    x.piece = x.async and x.align or x.fetched
    x.save = x.gradient == "none" and "none" or "save_" .. x.size .. "_" .. x.fetched
    x.chunk = (x.async and "copy_" or "fetch_") .. x.size .. "_" .. x.piece
    x.pages = mma_family and pages(x.kept_bytes)
        or { { at = 0, width = pitch, chunks = kept // 4, swizzle = function() return "0" end } }
    for i, p in ipairs(x.pages) do p.last = i == #x.pages end
    return x
end

-- Numbers of one step.
function enter_step(a_step)
    step, T, L = a_step, a_step.tile, a_step.scratch
    ends = step.low + step.high > 0
    threads = step.threads
    by_keys = step.role == "bwd_dkdv" or step.role == "bwd"
    by_tensor = step.role == "dtensor"
    is_main = by_keys or by_tensor or step.role == "bwd_dq"
    args = is_main and "Args_bwd" or "Args_" .. step.role
    skeleton = is_main and not by_tensor and "bwd" or step.role
    first_main = by_keys -- what both share stands before it
    mma_family = true -- rows of O and dO are read 16 bytes at a time
    if not is_main then return end
    pass = by_tensor and "tensor" or by_keys and "dkdv" or "dq"
    own, other = T.block_k or T.dq_block_q, T.block_q or T.dq_block_k
    warp_rows, stages = T.rows or T.dq_rows, T.stages or T.dq_stages
    least_blocks = T.blocks or T.dq_blocks
    pairs_of_warps = T.split == 1
    own_regs = T.kv_regs or T.q_do_regs or 0
    in_regs = { own_regs == 2, own_regs > 0 } -- own rows, by tile
    mma_family = L.pitch1 == 0
    variants = not mma_family and { "bwd_fma" }
        or precise and { "bwd_tf32", "bwd_mma" } or { "bwd_mma" }
    -- The call that sums.
    add = mma_family and "add_%d(sums->%s, %s, %s);" or "add_%d(sums->%s, %s, smem + P_TILE, %s);"
    in_tile = mma_family and S.dtype or "f32"
    local own_names = by_keys and { "k", "v" } or { "q", "dout" }
    local other_names = by_keys and { "q", "dout" } or { "k", "v" }
    local d, dv = S.head_dim, S.head_dim_v
    tiles = {
        x1 = bwd_tile("x1", own_names[1], d, L.dim, own, L.pitch1),
        x2 = bwd_tile("x2", own_names[2], dv, L.dim_v, own, L.pitch2),
        y1 = bwd_tile("y1", other_names[1], d, L.dim, other, L.pitch1),
        y2 = bwd_tile("y2", other_names[2], dv, L.dim_v, other, L.pitch2),
    }
    set_dq(a_step.role == "bwd" and T.dq or 0)
    -- Sums in registers: dK or dQ, then dV; or one of them, by the warp.
    sums = { { name = "first", kept = L.dim } }
    if by_keys then sums[2] = { name = "second", kept = L.dim_v } end
    if pairs_of_warps then sums = { { name = "both", kept = math.max(L.dim, L.dim_v) } } end
    first_sum, second_sum = sums[1].name, sums[#sums].name
    -- Every tile of keys is whole.
    whole_k = P.mult_k % (by_keys and own or other) == 0 and not S.varlen and not S.lens_k
        and not in_block -- which is there also where there are no keys
    partials = masked or not whole_k -- as far as the mask goes
    own_partials = partials or programs.keep
    odd_sums = hides and by_keys
    tells_odd = odd_sums or programs.score
end

-- How dQ is summed besides, and who has which part of a step's: warps take
-- turns in tiles of 16 rows, then in pairs of column tiles.
function set_dq(way)
    in_block, ordered, gathers = way == 1, way == 2, way ~= 0
    if not gathers then return end
    local warps, m = threads // 32, other // 16
    local m_warps = 1
    while m % (2 * m_warps) == 0 and warps % (2 * m_warps) == 0 do m_warps = 2 * m_warps end
    local units = (L.dim + 15) // 16
    dq = { m_warps = m_warps, n_warps = warps // m_warps, m = m // m_warps, units = units,
        pitch = S.head_dim + S.head_dim % 2 }
    dq.n = (units + dq.n_warps - 1) // dq.n_warps
    tiles.ds = { name = "ds", rows = own, pages = pages(2 * other) }
    for i, p in ipairs(tiles.ds.pages) do p.last = i == #tiles.ds.pages end
end

-- A number of a sum on its way out: that of a key which nobody sees is 0,
-- whatever was added up for it.
function sum_of(text) return by_keys and own_partials and "is_seen ? " .. text .. " : 0" or text end

-- The tiles in order, for loops.
tile_names = { "x1", "x2", "y1", "y2" }

-- Runs a stage of the backward, or the one that replaces it for this family.
function bwd_stage(name, ...)
    for _, folder in ipairs(variants) do
        local own_file = "cuda/stage/" .. folder .. "/" .. name .. ".cu.in"
        if has_template(own_file) then return include(own_file, ...) end
    end
    return include("cuda/stage/bwd/" .. name .. ".cu.in", ...)
end

-- The code of a main step.
function main_stages()
    for _, name in ipairs { "job", "copy", "lanes", "lane", "dots", "weights", "sums" } do
        bwd_stage(name)
    end
    if hides then bwd_stage "odd" end
    if gathers then bwd_stage "dq" end
    bwd_stage "step"
    if odd_sums then bwd_stage "add_odd" end
    if tells_odd then bwd_stage "close_sums" end
    bwd_stage "store"
end

-- Gives the names of this step to its code, and takes them back.
function open_names()
    for _, n in ipairs(bwd_names) do
        bwd_stage("name", ("#define %s %s_%s"):format(n, pass, n))
    end
end
function close_names()
    for _, n in ipairs(bwd_names) do bwd_stage("name", "#undef " .. n) end
end

-- A stage for each tile, or for each page of one.
function each_tile(stage_name)
    for _, name in ipairs(tile_names) do bwd_stage(stage_name, tiles[name]) end
end
function each_page(stage_name, x)
    for _, p in ipairs(x.pages) do bwd_stage(stage_name, x, p) end
end

-- What both main steps share, as far as the spec asks for it.
function shared_parts()
    local parts = { "args", "row_ptr", "sync" }
    if diagonal then parts[#parts + 1] = "mask" end
    if has_programs then parts[#parts + 1] = "program/base" end
    if programs.keep then parts[#parts + 1] = "program/of_bwd" end
    if S.alibi then parts[#parts + 1] = "slope" end
    if S.softcap then parts[#parts + 1] = "tanh_half" end
    if programs.score then parts[#parts + 1] = "program/excluded" end
    for _, part in ipairs(parts) do include("cuda/stage/" .. part .. ".cu.in") end
    bwd_stage("family")
    if S.dropout then include "cuda/stage/philox.cu.in" end
    bwd_stage("query_row", "dout")
    if in_block or not gathers then bwd_stage("query_row", "dq") end
    if in_block then bwd_stage "put_pair" end
    bwd_stage("key_row", "dk")
    bwd_stage("key_row", "dv")
    chunk_forms()
end

-- What fetches and saves 16 bytes of a tensor: of each form one.
function chunk_forms()
    local done = { none = true }
    for _, name in ipairs(tile_names) do
        local x = tiles[name]
        local way = "cuda/stage/" .. (x.async and "copy" or "fetch") .. ".cu.in"
        if not done[x.chunk] then include(way, x.chunk, x.size, x.piece) end
        if not done[x.save] then
            include("cuda/stage/save_chunk.cu.in", x.save, x.size, x.fetched)
        end
        done[x.chunk], done[x.save] = true, true
    end
    if tiles.x1.size == 8 then include "cuda/stage/fma/put_wide.cu.in" end
end
