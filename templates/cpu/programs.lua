-- SPDX-License-Identifier: Apache-2.0
-- What CPU templates say of mask and score programs. Given by emit.c: the table
-- `programs` and program(), which prints parts of them as C.

programmed = programs.keep or programs.score
partly = masked or programs.keep -- tiles may be seen in part
judged = programs.keep and not programs.exact -- bounds do not say all
excluding = partly or programs.score

-- How C is written where queries lie in the vectors: heads that share keys are
-- rows, too. x: the score so far.
local in_lanes = { lanes = "qhsd", rows = "qh", s = "x", strips = "yes" }
-- Where keys do: one row at a time.
local in_row = { lanes = "ksd", rows = "qh", s = "x" }
-- Of a whole tile: heads are a range, or come one by one.
local of_tile = { rows = "qh" }
local of_head = { rows = "q" }

-- What printed programs call.
function program_prims()
    local names = programmed and "program program_float program_read" or ""
    if programs.keep then
        names = names .. " program_keys"
    end
    if judged then
        names = names .. " program_range program_bits program_look"
    end
    names = names .. (#strip_kinds() > 0 and " program_strip" or "")
    for name in names:gmatch("%S+") do
        include("cpu/prim/" .. name .. ".c.in")
    end
end

-- Part `show` of a program as C; `root` as program() has it.
function printed(what, show, root, index)
    local by = show:find("^verdict") and of_tile or show:find("^bounds") and of_head
        or few and in_row or in_lanes
    by.prefix, by.root, by.index = what .. "_", root, index
    return program(what, show, by)
end

-- Emits the statements of a stage of up to two programs (false: none), `depth`
-- blocks deep, after what they need to be declared.
function part(show, depth, one, two)
    local out = {}
    for _, what in ipairs { one or two, one and two or nil } do
        for line in (what and printed(what, show) or ""):gmatch("[^\n]+") do
            out[#out + 1] = ("    "):rep(depth - 1) .. line
        end
    end
    if (one or two) and has_template("cpu/stage/program/" .. show .. ".c.in") then
        stage("program/" .. show)
    end
    if #out > 0 then
        stage("program/lines", table.concat(out, "\n"))
    end
end

-- A root as a vector, whatever it changes with.
function printed_mask(what)
    return "((ivec){0} + (" .. printed(what, "value") .. ")) != 0"
end

function printed_value(what, root, index)
    return "(" .. printed(what, "value", root, index) .. ") - (vec){0}"
end

-- In words, what a work item of dtensor owns.
function owned_words()
    local function owns(letter) return programs.owned:find(letter, 1, true) end
    return (owns("b") and "a batch entry, " or "all batch entries, ") ..
        (owns("h") and "a kv head, " or "all heads, ") ..
        (owns("q") and "BLOCK_Q queries" or "all queries") ..
        (parted and ";\n * of these one part, with a copy of the gradients" or "")
end

-- The argument that says where a part's copy lies.
copy_param = parted and ", f32 *copy" or ""
copy_arg = parted and ", copy" or ""

-- What turns scores into weights, or into gradients of a read, and where to.
function weights_of(read)
    if read then
        return "read" .. read, "grad and index[n][MICRO]"
    end
    return "weights", "P, dS in place"
end

-- The computed index of a read, as a vector; 0 where there is none.
function computed_index(read)
    for d, kind in ipairs(programs.grads[read].index) do
        if kind == "expr" then
            return "(ivec){0} + (" .. printed("grad", "value", read, d) .. ")"
        end
    end
    return "(ivec){0}"
end

-- Steps from the start of a tensor to what a read reads: for each of its dims
-- the C of the index, of a row's lane l and the j-th key of the cut.
function read_indices(read)
    local out = {}
    for d, kind in ipairs(programs.grads[read].index) do
        out[d] = kind == "expr" and "index[j * MICRO]"
            or kind == "const" and printed("grad", "value", read, d) or kind
    end
    return out
end

-- The place of the element that a row's lane and a key read, and whether it is
-- inside, from 0 and 1.
function place_lines(read, pad)
    local out, of = {}, programs.grads[read].tensor
    for d, index in ipairs(read_indices(read)) do
        local n = ("a->tensor_%s_n%d"):format(of, d - 1)
        out[#out + 1] = ("%sinside &= (u64)(%s) < (u64)%s;"):format(pad, index, n)
        out[#out + 1] = ("%splace = place * %s + %s;"):format(pad, n, index)
    end
    return table.concat(out, "\n")
end

-- Does a row read one element, whatever the key?
function same_along_keys(read)
    local kinds = table.concat(programs.grads[read].index, " ")
    return not (kinds:find("k", 1, true) or kinds:find("expr", 1, true))
end

-- Does the mask, or does any program, take this operand?
local function takes(what, operand)
    local marked = { lanes = "qhsd", rows = "qh", [operand] = "THIS" }
    for _, show in ipairs { "entry", "row", "key", "pair", "value" } do
        if program(what, show, marked):find("THIS", 1, true) then
            return true
        end
    end
    return false
end

bounds_take_heads = programs.keep and takes("keep", "h")
heads_in_programs = bounds_take_heads or programs.score and takes("score", "h")

-- Tensors by dtype: C of an element at AT of p, as a number and as a lane.
read_types = {
    f32 = { type = "f32", lanes = "vec", element = "f32_any", load = "p[AT]" },
    f16 = { type = "f32", lanes = "vec", element = "u16_any", load = "half_f32(p[AT])" },
    i32 = { type = "i32", lanes = "ivec", element = "i32_any", load = "p[AT]" },
    bool = { type = "i32", lanes = "ivec", element = "unsigned char", load = "(p[AT] != 0)",
        lane = "-(p[AT] != 0)" },
    bits = { type = "i32", lanes = "ivec", element = "u32_any",
        load = "(i32)(p[(AT) >> 5] >> ((AT) & 31) & 1)",
        lane = "-(i32)(p[(AT) >> 5] >> ((AT) & 31) & 1)" },
}

function reads(dtype)
    for _, t in ipairs(programs.tensors) do
        if t.dtype == dtype then
            return true
        end
    end
    return false
end

-- The dtypes and ranks that programs read, each once.
function read_kinds()
    local out, seen = {}, {}
    for _, t in ipairs(programs.tensors) do
        local kind = { dtype = t.dtype, rank = t.rank, name = t.dtype .. "_" .. t.rank }
        for key, value in pairs(read_types[t.dtype]) do
            kind[key] = value
        end
        kind.lane = kind.lane or kind.load
        kind.splat = kind.lanes == "vec" and "all" or "splat_i32"
        kind.index = each(t.rank, ", i32 i#", "")
        kind.vectors = each(t.rank, ", ivec i#", "")
        kind.ranges = each(t.rank, ", struct range i#", "")
        kind.at = t.rank > 0 and each(t.rank, "i# * t->step[#]", " + ") or "0"
        kind.lane_at = kind.at:gsub("(i%d)", "%1[#]")
        out[#out + 1] = not seen[kind.name] and kind or nil
        seen[kind.name] = true
    end
    return out
end

-- Those whose ranges a verdict asks for.
function look_kinds()
    local out = {}
    for _, kind in ipairs(read_kinds()) do
        if kind.rank > 0 and kind.type == "i32" then
            local last = kind.rank - 1
            local at = each(last, "x# * t->step[#] + ", "") ..
                ("a%d * t->step[%d]"):format(last, last)
            kind.look = kind.dtype == "bits" and "look_bits(p, " .. at
                or ("look_%s(p + %s,\n                  t->step[%d]"):format(kind.dtype, at, last)
            out[#out + 1] = kind
        end
    end
    return out
end

-- Those whose elements come from strips.
function strip_kinds()
    local text, out = "", {}
    for _, what in ipairs { "keep", S.pass == "bwd" and "grad" or "score" } do
        if programs[what == "grad" and "score" or what] then
            text = text .. program(what, "row", in_lanes)
        end
    end
    for _, kind in ipairs(read_kinds()) do
        out[#out + 1] = text:find("open_strip_" .. kind.name .. "(", 1, true) and kind or nil
    end
    return out
end
