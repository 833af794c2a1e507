/* SPDX-License-Identifier: Apache-2.0
 * The entry format: one self-contained little-endian file.
 *
 *   0  magic[8]   8 u16 major  10 u16 minor  12 u32 header length
 *  16  u64 total length        24 key[32]    56 u32 writer  60 u32 sections
 *  64  i64 created             72 section table, one row of 32 bytes each:
 *      u32 id, u32 zero, u64 offset, u64 length, u64 XXH3-64
 *   ...  sections              total - 16: XXH3-128 of all before
 *
 * Checksums find damage, not malice: cache_dir.c decides whom to trust. */
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "cache_internal.h"

/* X(name, id): ids are for ever. */
#define SECTION_LIST(X)                                                        \
    X(identity, 1)                                                             \
    X(plan, 2) X(compiler, 3) X(log, 4) X(binary, 5) X(numbers, 6)

enum section {
#define X(name, id) SECTION_##name = id,
    SECTION_LIST(X)
#undef X
};

enum {
    FIXED = 72, /* header before the table */
    ROW = 32,
    TAIL = 16,
    KNOWN = 6,
    MAX_SECTIONS = 64,
    NUMBERS = 8, /* f64 compile_ms; minors append */
};

static const char magic[8] = "\x89"
                             "ATTNC\r\n";
static const char no_memory[] = "out of memory";

typedef struct Section {
    uint32_t id;
    const void *data;
    uint64_t len;
} Section;

static void put(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

static void whole_hash(const uint8_t *bytes, size_t len, uint8_t out[TAIL]) {
    XXH128_hash_t hash = XXH3_128bits(bytes, len);
    put(out, hash.low64, 8);
    put(out + 8, hash.high64, 8);
}

static Section text_section(uint32_t id, const char *text) {
    return (Section){id, text ? text : "", text ? strlen(text) : 0};
}

static void put_header(uint8_t *at, const CacheKey *k, const CacheEntry *e,
                       uint64_t total) {
    memcpy(at, magic, sizeof magic);
    put(at + 8, CACHE_FORMAT, 2);
    put(at + 10, CACHE_FORMAT_MINOR, 2);
    put(at + 12, FIXED + KNOWN * ROW, 4);
    put(at + 16, total, 8);
    memcpy(at + 24, k->sha256, sizeof k->sha256);
    put(at + 56,
        ATTNC_VERSION_MAJOR * 10000 + ATTNC_VERSION_MINOR * 100 +
            ATTNC_VERSION_PATCH,
        4);
    put(at + 60, KNOWN, 4);
    put(at + 64, (uint64_t)e->created, 8);
}

bool cache_file_encode(const CacheKey *k, const CacheEntry *e, Blob *out) {
    uint8_t numbers[NUMBERS];
    uint64_t bits;
    memcpy(&bits, &e->compile_ms, sizeof bits);
    put(numbers, bits, 8);
    const Section section[KNOWN] = {
        text_section(SECTION_identity, e->identity),
        text_section(SECTION_plan, e->plan),
        text_section(SECTION_compiler, e->compiler),
        text_section(SECTION_log, e->log),
        {SECTION_binary, e->binary.data, e->binary.len},
        {SECTION_numbers, numbers, NUMBERS},
    };
    uint64_t total = FIXED + KNOWN * ROW + TAIL;
    for (int i = 0; i < KNOWN; i++)
        total += section[i].len;
    uint8_t *bytes = calloc(1, total);
    *out = (Blob){bytes, total};
    if (!bytes)
        return false;
    put_header(bytes, k, e, total);
    uint64_t offset = FIXED + KNOWN * ROW;
    for (int i = 0; i < KNOWN; i++) {
        const Section *s = &section[i];
        uint8_t *row = bytes + FIXED + i * ROW;
        if (s->len > 0)
            memcpy(bytes + offset, s->data, s->len);
        put(row, s->id, 4);
        put(row + 8, offset, 8);
        put(row + 16, s->len, 8);
        put(row + 24, XXH3_64bits(bytes + offset, s->len), 8);
        offset += s->len;
    }
    whole_hash(bytes, total - TAIL, bytes + total - TAIL);
    return true;
}

/* Every length is bounded here, before anything is read through it. */
static const char *check_header(const Blob *file, const CacheKey *k) {
    const uint8_t *at = file->data;
    if (file->len < FIXED + TAIL)
        return "too short for an entry";
    if (memcmp(at, magic, sizeof magic) != 0)
        return "not an entry";
    if (get(at + 8, 2) != CACHE_FORMAT)
        return "written in another format";
    if (get(at + 16, 8) != file->len)
        return "not of the length it was written with";
    uint64_t header = get(at + 12, 4), sections = get(at + 60, 4);
    if (sections > MAX_SECTIONS || header < FIXED + sections * ROW ||
        header > file->len - TAIL)
        return "header out of bounds";
    if (memcmp(at + 24, k->sha256, sizeof k->sha256) != 0)
        return "entry of another key";
    return NULL;
}

/* Copies a section's text into *slot, which must still be free. */
static const char *take_text(char **slot, const uint8_t *at, uint64_t len) {
    if (*slot || memchr(at, 0, len))
        return "malformed text section";
    *slot = malloc(len + 1);
    if (!*slot)
        return no_memory;
    memcpy(*slot, at, len);
    (*slot)[len] = '\0';
    return NULL;
}

static const char *take_binary(Blob *slot, const uint8_t *at, uint64_t len) {
    if (slot->data || len == 0)
        return "malformed binary section";
    slot->data = malloc(len);
    if (!slot->data)
        return no_memory;
    memcpy(slot->data, at, len);
    slot->len = len;
    return NULL;
}

static const char *take_numbers(CacheEntry *out, const uint8_t *at,
                                uint64_t len) {
    if (len < NUMBERS)
        return "malformed numbers section";
    uint64_t bits = get(at, 8);
    memcpy(&out->compile_ms, &bits, sizeof bits);
    return NULL;
}

/* What to call a section whose checksum is wrong. */
static const char *damage(uint64_t id) {
    switch (id) {
#define X(name, id)                                                            \
    case id:                                                                   \
        return "wrong checksum of section " #name;
        SECTION_LIST(X)
#undef X
    }
    return "wrong checksum of a section";
}

static const char *take_section(const Blob *file, const uint8_t *row,
                                CacheEntry *out) {
    uint64_t id = get(row, 4), offset = get(row + 8, 8);
    uint64_t len = get(row + 16, 8), end = file->len - TAIL;
    if (offset > end || len > end - offset)
        return "section out of bounds";
    const uint8_t *at = (const uint8_t *)file->data + offset;
    if (XXH3_64bits(at, len) != get(row + 24, 8))
        return damage(id);
    switch (id) {
    case SECTION_identity:
        return take_text(&out->identity, at, len);
    case SECTION_plan:
        return take_text(&out->plan, at, len);
    case SECTION_compiler:
        return take_text(&out->compiler, at, len);
    case SECTION_log:
        return take_text(&out->log, at, len);
    case SECTION_binary:
        return take_binary(&out->binary, at, len);
    case SECTION_numbers:
        return take_numbers(out, at, len);
    }
    return NULL; /* of a later minor: skipped */
}

static const char *take_sections(const Blob *file, CacheEntry *out) {
    const uint8_t *at = file->data;
    uint64_t sections = get(at + 60, 4);
    for (uint64_t i = 0; i < sections; i++) {
        const char *fault = take_section(file, at + FIXED + i * ROW, out);
        if (fault)
            return fault;
    }
    uint8_t tail[TAIL];
    whole_hash(at, file->len - TAIL, tail);
    if (memcmp(tail, at + file->len - TAIL, TAIL) != 0)
        return "wrong checksum of the file";
    if (!out->identity || !out->plan || !out->compiler || !out->log ||
        !out->binary.data)
        return "section missing";
    out->created = (int64_t)get(at + 64, 8);
    return NULL;
}

enum load cache_file_decode(const Blob *file, const CacheKey *k,
                            CacheEntry *out, const char **fault) {
    memset(out, 0, sizeof *out);
    *fault = check_header(file, k);
    if (!*fault)
        *fault = take_sections(file, out);
    if (!*fault)
        return LOAD_OK;
    cache_entry_free(out);
    return *fault == no_memory ? LOAD_REFUSED : LOAD_BAD;
}

void cache_entry_free(CacheEntry *e) {
    free(e->identity);
    free(e->compiler);
    free(e->log);
    free(e->plan);
    free(e->binary.data);
    memset(e, 0, sizeof *e);
}
