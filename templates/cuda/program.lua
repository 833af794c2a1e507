-- SPDX-License-Identifier: Apache-2.0
-- What templates need besides of mask and score programs.

-- C for operands in a kernel, where a row may be of any head of its group.
program_at = { rows = "qh", b = "w->b", nq = "w->nq", nk = "w->all_keys", off = "(i32)w->offset" }

-- A table with one field changed.
function with(options, key, value)
    local out = {}
    for k, v in pairs(options) do out[k] = v end
    out[key] = value
    return out
end

-- The two that a backward prints beside each other, names of their own.
keep_at = with(program_at, "prefix", "m")
grad_at = with(program_at, "s", "x")

-- Does C text name this?
function uses(text, name) return text:find("%f[%w_]" .. name .. "%f[^%w_]") ~= nil end

-- The forms of tensors, each once: those read; those asked for over ranges.
local names = { "i", "j", "k", "l" }
programs.reads, programs.scans, programs.bit_scans = {}, {}, {}
local verdict = verdicts and program("keep", "verdict", program_at) or ""
local known = {}
for _, t in ipairs(programs.tensors) do
    local form = { dtype = t.dtype, rank = t.rank,
        type = (t.dtype == "f32" or t.dtype == "f16") and "float" or "int" }
    form.index, form.last, form.indices, form.ranges, form.at = names, names[t.rank], "", "", ""
    for dim = 1, t.rank do
        form.indices = form.indices .. ", int " .. names[dim]
        form.ranges = form.ranges .. ", struct range " .. names[dim]
        form.at = form.at .. ", at[" .. dim - 1 .. "]"
    end
    local name = t.dtype .. "_" .. t.rank
    if not known[name] then
        programs.reads[#programs.reads + 1] = form
        if uses(verdict, "range_read_" .. name) then
            local scans = t.dtype == "bits" and programs.bit_scans or programs.scans
            scans[#scans + 1] = form
        end
    end
    known[name] = true
end

-- Over which steps gradients of tensors go.
first_step = programs.keep and "next_step(a, &w, &b, b.lo).lo" or "b.lo"
next_step = programs.keep and "next_step(a, &w, &b, lo + OTHER).lo" or "lo + OTHER"
copy_param = parted and ", float *copy" or ""

-- C for an index of the i-th read with a gradient.
function read_index(i, dim)
    return program("grad", "value", with(with(grad_at, "root", i), "index", dim))
end

-- Has each pair of a tile an element of its own?
function is_direct(read)
    local indices, reads = table.concat(read.index, " "), 0
    for _, other in ipairs(programs.grads) do
        reads = reads + (other.tensor == read.tensor and 1 or 0)
    end
    return reads == 1 and uses(indices, "q") and uses(indices, "k")
end

-- Have parts of the work copies of the gradient that this read adds to?
function is_parted(read) return gradient_of(read.tensor):find("^copy") ~= nil end

-- Do the rows of a read's warp have elements to themselves, or a copy? Rows are
-- queries of one head.
function warps_apart(read)
    return is_parted(read) or programs.split:find("q", 1, true) ~= nil
end

-- Do all keys of a row read one element?
function reads_by_row(read)
    local indices = table.concat(read.index, " ")
    return not uses(indices, "k") and not uses(indices, "expr")
end

-- The call that sums pairs, where these have no elements of their own.
function sum_call(direct, apart, by_row, to)
    if direct then return "" end
    local width = by_row and "LANES_A_ROW" or "OTHER"
    return apart and ("sum_own_pairs(%s, pairs, %s);"):format(to, width)
        or ("sum_pairs(%s, pairs);"):format(to)
end

-- Copies of a gradient that each part has: its warps'.
function copies_of_part()
    for _, s in ipairs(steps) do
        if s.role == "dtensor" then return s.tile.dq_warps end
    end
end

-- The call that clears a tensor's gradient.
function zero_call(t)
    return ("zero(a.dtensor_%s, %s);"):format(t.name, elements(t, "a."))
end
