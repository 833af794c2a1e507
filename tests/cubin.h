/* SPDX-License-Identifier: Apache-2.0
 * What a cubin says of its kernels, read from the ELF file itself: registers,
 * stack, shared memory, and the machine instructions that touch local memory.
 * No disassembler is needed: since Volta an instruction is 16 bytes, whose
 * lowest 9 bits say which one it is. */
#ifndef CUBIN_H
#define CUBIN_H

#include <elf.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "runtime.h"

typedef struct Cubin {
    int registers;      /* of a thread */
    int64_t stack;      /* bytes of local memory of a thread */
    int64_t smem;       /* bytes of shared memory that are not dynamic */
    int instructions;   /* of the kernel */
    int local_accesses; /* of these: loads from and stores to local memory */
} Cubin;

typedef struct CubinFile {
    const char *data;
    size_t len;
    const Elf64_Shdr *section;
    int count;
    const char *names;
} CubinFile;

static inline bool cubin_open(const Blob *b, CubinFile *f) {
    const Elf64_Ehdr *h = b->data;
    if (b->len < sizeof *h || memcmp(h->e_ident, ELFMAG, SELFMAG) ||
        h->e_shoff + h->e_shnum * sizeof(Elf64_Shdr) > b->len)
        return false;
    *f = (CubinFile){b->data, b->len,
                     (const void *)((const char *)b->data + h->e_shoff),
                     h->e_shnum, NULL};
    f->names = f->data + f->section[h->e_shstrndx].sh_offset;
    return true;
}

/* The section PREFIXentry, or NULL. */
static inline const Elf64_Shdr *cubin_section(const CubinFile *f,
                                              const char *prefix,
                                              const char *entry) {
    char want[160];
    snprintf(want, sizeof want, "%s%s", prefix, entry);
    for (int i = 0; i < f->count; i++) {
        const Elf64_Shdr *s = &f->section[i];
        if (!strcmp(f->names + s->sh_name, want))
            return s->sh_type == SHT_NOBITS ||
                           s->sh_offset + s->sh_size <= f->len
                       ? s
                       : NULL;
    }
    return NULL;
}

static inline bool cubin_symbol_is(const CubinFile *f, uint32_t index,
                                   const char *entry) {
    const Elf64_Shdr *table = cubin_section(f, ".symtab", "");
    const Elf64_Shdr *text = cubin_section(f, ".strtab", "");
    if (!table || !text || (index + 1) * sizeof(Elf64_Sym) > table->sh_size)
        return false;
    const Elf64_Sym *s = (const void *)(f->data + table->sh_offset);
    return !strcmp(f->data + text->sh_offset + s[index].st_name, entry);
}

/* Attributes of .nv.info that name a symbol: {4, which, size, symbol, value}.
 * The numbers are those that `cuobjdump -elf` prints names for. */
enum { NV_FRAME_SIZE = 0x11, NV_MIN_STACK = 0x12, NV_REGISTERS = 0x2f };
enum { NV_FORM_SIZED = 4 };

static inline void cubin_attributes(const CubinFile *f, const char *entry,
                                    Cubin *out) {
    const Elf64_Shdr *s = cubin_section(f, ".nv.info", "");
    const unsigned char *p = s ? (const void *)(f->data + s->sh_offset) : NULL;
    for (size_t i = 0; s && i + 4 <= s->sh_size;) {
        uint16_t size = 0;
        uint32_t v[2] = {0};
        if (p[i] == NV_FORM_SIZED)
            memcpy(&size, p + i + 2, 2);
        if (size == 8 && i + 12 <= s->sh_size)
            memcpy(v, p + i + 4, 8);
        if (size == 8 && cubin_symbol_is(f, v[0], entry)) {
            if (p[i + 1] == NV_REGISTERS)
                out->registers = (int)v[1];
            else if (p[i + 1] == NV_FRAME_SIZE || p[i + 1] == NV_MIN_STACK)
                out->stack = v[1] > out->stack ? v[1] : out->stack;
        }
        i += 4u + size;
    }
}

enum { SASS_LDL = 0x183, SASS_STL = 0x187 };

static inline void cubin_scan(const CubinFile *f, const Elf64_Shdr *text,
                              Cubin *out) {
    for (size_t i = 0; i + 16 <= text->sh_size; i += 16) {
        uint16_t word;
        memcpy(&word, f->data + text->sh_offset + i, 2);
        out->instructions++;
        out->local_accesses +=
            (word & 0x1ff) == SASS_LDL || (word & 0x1ff) == SASS_STL;
    }
}

/* false: no such kernel in it. */
static inline bool cubin_read(const Blob *b, const char *entry, Cubin *out) {
    CubinFile f;
    *out = (Cubin){0};
    if (!cubin_open(b, &f))
        return false;
    const Elf64_Shdr *text = cubin_section(&f, ".text.", entry);
    const Elf64_Shdr *smem = cubin_section(&f, ".nv.shared.", entry);
    if (!text)
        return false;
    out->smem = smem ? (int64_t)smem->sh_size : 0;
    cubin_attributes(&f, entry, out);
    cubin_scan(&f, text, out);
    return out->registers > 0;
}

#endif
