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

-- The three that a backward prints beside each other, names of their own.
score_at = with(with(program_at, "s", "x"), "prefix", "u")
keep_at = with(program_at, "prefix", "m")
grad_at = with(program_at, "s", "x")

-- Does C text name this?
function uses(text, name) return text:find("%f[%w_]" .. name .. "%f[^%w_]") ~= nil end

-- The forms of tensors, each once: those read; those asked for over ranges.
programs.reads, programs.scans = {}, {}
local verdict = verdicts and program("keep", "verdict", program_at) or ""
local known = {}
for _, t in ipairs(programs.tensors) do
    local form = { dtype = t.dtype, rank = t.rank,
        type = (t.dtype == "f32" or t.dtype == "f16") and "float" or "int" }
    local name = t.dtype .. "_" .. t.rank
    if not known[name] then
        programs.reads[#programs.reads + 1] = form
        if uses(verdict, "range_read_" .. name) then
            programs.scans[#programs.scans + 1] = form
        end
    end
    known[name] = true
end
