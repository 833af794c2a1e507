-- SPDX-License-Identifier: Apache-2.0
-- How the step dtensor shares out its work, on any target: see grad_share.

-- Letters of owned, but not of other; those that differ fastest first.
local function letters_of(owned, other)
    local out = {}
    for letter in ("qhb"):gmatch(".") do
        if owned:find(letter, 1, true) and not other:find(letter, 1, true) then
            out[#out + 1] = letter
        end
    end
    return out
end

owned_letters = letters_of(programs.owned, "") -- say which item it is
cell_letters = letters_of(programs.split, programs.owned) -- and which cell of an item

-- Tensors of which each part of the work has a copy; in that they follow each
-- other.
parted_tensors = {}
for _, t in ipairs(programs.tensors) do
    if t.parted then parted_tensors[#parted_tensors + 1] = t end
end
parted = #parted_tensors > 0

-- C for the elements of a tensor whose slots are those of `a`.
function elements(t, a)
    local n = "1"
    for dim = 0, t.rank - 1 do n = ("%s * %stensor_%s_n%d"):format(n, a, t.name, dim) end
    return n
end

-- C for the elements of a copy, or of what in it lies before a tensor.
function parted_size(a, before)
    local out = {}
    for _, t in ipairs(parted_tensors) do
        if t.name == before then break end
        out[#out + 1] = elements(t, a)
    end
    return #out > 0 and table.concat(out, " + ") or "0"
end

-- C for where a tensor's gradient is added up.
function gradient_of(name)
    for _, t in ipairs(parted_tensors) do
        if t.name == name then return "copy + (" .. parted_size("a->", name) .. ")" end
    end
    return "a->dtensor_" .. name
end

-- C that takes the places of these letters from a number, into a share.
function takes_of(letters, number, share)
    local out = {}
    for _, x in ipairs(letters) do
        out[#out + 1] = ("take(&%s, &%s.%s, &%s.%s_end);"):format(number, share, x, share, x)
    end
    return table.concat(out, " ")
end

-- C for the number of cells of an item; counts are called BEFORE letter AFTER.
function cells(before, after)
    local n = "(i64)1"
    for _, letter in ipairs(cell_letters) do n = n .. " * " .. before .. letter .. after end
    return n
end
