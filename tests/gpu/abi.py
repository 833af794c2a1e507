# SPDX-License-Identifier: Apache-2.0
"""The library's C interface for ctypes. The structs are read from the public
headers, so that one which grows is never out of step."""
import ctypes as C
import math
import os
import re

from _attnc import SOURCE

NUMBERS = {"size_t": C.c_size_t, "int64_t": C.c_int64, "uint64_t": C.c_uint64,
           "int32_t": C.c_int32, "int": C.c_int, "float": C.c_float,
           "double": C.c_double}
structs, defaults, enums = {}, {}, {}


def read(path):
    with open(os.path.join(SOURCE, path), encoding="utf-8") as f:
        return re.sub(r"/\*.*?\*/", "", f.read(), flags=re.S)


def members(body):
    """(name, type) of each member declared in the text of a struct."""
    for line in body.split(";"):
        line = " ".join(line.split())
        function = re.match(r".*\(\*(\w+)\)\(", line)
        plain = re.match(r"(?:const )?(\w+) (.+)", line)
        if function:
            yield function.group(1), C.c_void_p
        elif plain:
            base, names = plain.groups()
            for name in re.sub(r"\[.*?\]", "", names).split(","):
                text = base == "char" and "*" in name
                kind = C.c_char_p if text else C.c_void_p if "*" in name \
                    else structs.get(base) or NUMBERS.get(base, C.c_void_p)
                yield name.replace("*", "").replace("const ", "").strip(), kind


def define(name, fields):
    structs[name] = type(name, (C.Structure,), {"_fields_": list(fields)})


def define_listed(name, path):
    """A struct whose members a .def file lists: MACRO(name, .., default, ..)"""
    number = C.c_int64 if "shape" in name else C.c_int32
    fields, values = [("struct_size", C.c_size_t)], {}
    for kind, rest in re.findall(r"ATTNC_(\w+)\(([^\"]*)", read(path)):
        words = [w.strip() for w in rest.split(",")]
        if kind == "TEXT":  # a program: none, unless made
            fields.append((words[0], C.c_void_p))
            continue
        fields.append((words[0], number))
        values[words[0]] = int(words[2 if kind == "ENUM" else 1])
        if kind == "ENUM":
            enums[words[0]] = words[1]
    define(name, fields)
    defaults[name] = values


def spellings():
    """{"dtype": ["f32", "f16", ..], ..} of the fields that are enums."""
    text = read("gen/spec.h").replace("\\\n", "")
    for field, macro in enums.items():
        line = re.search(rf"#define {macro}\(X\)(.*)", text).group(1)
        enums[field] = re.findall(r'"(\w+)"', line)


def load_headers():
    define_listed("attnc_spec", "gen/spec.def")
    define_listed("attnc_shape", "gen/shape.def")
    spellings()
    for body, name in re.findall(r"typedef struct attnc_\w+ \{(.*?)\} (\w+);",
                                 read("runtime/attnc.h"), re.S):
        define(name, members(body))


load_headers()
Tensor, Args = structs["attnc_tensor"], structs["attnc_args"]


def make(name, values):
    """A struct from its defaults and {field: number or spelling}."""
    s = structs[name](struct_size=C.sizeof(structs[name]))
    for field, value in {**defaults.get(name, {}), **values}.items():
        if isinstance(value, str) and field in enums:
            value = enums[field].index(value)
        setattr(s, field, value)
    return s


def make_args(**values):
    return make("attnc_args", {"scale": math.nan, **values})


class Failure(Exception):
    """A call of the library failed: its text, and its status."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Library:
    def __init__(self, path):
        self.c = C.CDLL(path)
        self.c.attnc_last_error.restype = C.POINTER(structs["attnc_error"])

    def call(self, name, *args):
        status = getattr(self.c, name)(*args)
        if status:
            e = self.c.attnc_last_error().contents
            raise Failure(status, e.text.decode(errors="replace"))

    def program(self, text, kind):
        """A mask, score or pattern for a spec: enum attnc_program_kind."""
        made = C.c_void_p()
        self.call("attnc_program_create", text.encode(), kind, C.byref(made))
        return made.value

    def context(self, **options):
        """target="..", cache_dir=".." and so on, text as str."""
        o = make("attnc_options", {k: v.encode() if isinstance(v, str) else v
                                   for k, v in options.items()})
        handle = C.c_void_p()
        self.call("attnc_context_create", C.byref(o), C.byref(handle))
        return Context(self, handle)


class Context:
    def __init__(self, library, handle):
        self.library, self.handle = library, handle

    def prepare(self, spec, shape, tile=None):
        s, h = make("attnc_spec", spec), make("attnc_shape", shape)
        o = make("attnc_prepare_options",
                 {"tile": tile.encode() if tile else None})
        plan = C.c_void_p()
        self.library.call("attnc_prepare_with", self.handle, C.byref(s),
                          C.byref(h), C.byref(o), C.byref(plan))
        return Plan(self, plan)

    def close(self):
        self.library.c.attnc_context_destroy(self.handle)


class Plan:
    def __init__(self, context, handle):
        self.context, self.handle = context, handle
        self.library = context.library
        info = make("attnc_plan_info", {})
        self.library.call("attnc_plan_get_info", handle, C.byref(info))
        self.info = {name: getattr(info, name)
                     for name, _ in info._fields_[1:]}
        for name, value in self.info.items():
            if isinstance(value, bytes):
                self.info[name] = value.decode()

    def workspace(self, args):
        bytes_ = C.c_size_t()
        self.library.call("attnc_workspace", self.handle, C.byref(args),
                          C.byref(bytes_))
        return bytes_.value

    def launch(self, args, stream=None):
        self.library.call("attnc_launch", self.handle, C.byref(args),
                          C.c_void_p(stream))

    def release(self):
        self.library.c.attnc_plan_release(self.handle)
