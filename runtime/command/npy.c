/* SPDX-License-Identifier: Apache-2.0
 * NumPy's .npy files, in and out. Nothing in a header is believed before it
 * was checked: lengths are bounded, products cannot overflow, and the file's
 * size must be what the header says. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attnc.h"
#include "convert.h"
#include "npy.h"
#include "program.h"
#include "values.h"

enum { HEADER_MAX = 65536, CHUNK = 1 << 16 };

static const struct {
    const char *name, *descr;
    int bytes;
} types[] = {
#define X(suffix, name, descr, bytes) {name, descr, bytes},
    NPY_LIST(X)
#undef X
};

const char *npy_type_name(int type) {
    return types[type].name;
}

static int fault(const Npy *n, Err *e, const char *what) {
    return err_set(e, ERR_REQUEST, "command", NULL, "%s: %s", n->path, what);
}

/* Reads exactly len bytes; the number got when the file ends before, -1 on a
 * system error. */
static ssize_t read_full(int fd, void *buf, size_t len) {
    size_t got = 0;
    while (got < len) {
        ssize_t r = read(fd, (char *)buf + got, len - got);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return -1;
        if (r == 0)
            break;
        got += (size_t)r;
    }
    return (ssize_t)got;
}

static int io_fault(const Npy *n, Err *e) {
    return err_set(e, ATTNC_E_IO, "command", NULL, "%s: reading failed: %s",
                   n->path, strerror(errno));
}

static int need(Npy *n, void *buf, size_t len, Err *e) {
    ssize_t got = read_full(n->fd, buf, len);
    if (got < 0)
        return io_fault(n, e);
    return (size_t)got == len ? 0 : fault(n, e, "truncated in its header");
}

/* ---- the header's dictionary ------------------------------------------- */

typedef struct Scan {
    const char *p, *end;
} Scan;

static void skip(Scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\t'))
        s->p++;
}

static bool eat(Scan *s, char c) {
    skip(s);
    if (s->p == s->end || *s->p != c)
        return false;
    s->p++;
    return true;
}

static bool scan_quoted(Scan *s, Slice *out) {
    skip(s);
    if (s->p == s->end || (*s->p != '\'' && *s->p != '"'))
        return false;
    char quote = *s->p++;
    const char *close = memchr(s->p, quote, (size_t)(s->end - s->p));
    if (!close)
        return false;
    *out = (Slice){s->p, (size_t)(close - s->p)};
    s->p = close + 1;
    return true;
}

static int scan_descr(Scan *s, Npy *n, Err *e) {
    Slice d;
    skip(s);
    if (s->p < s->end && *s->p == '[')
        return fault(n, e, "records are not read; accepted: f16 f32 f64");
    if (!scan_quoted(s, &d))
        return fault(n, e, "malformed header: descr is no string");
    for (int i = 0; i < NPY_TYPES; i++)
        if (slice_is(d, types[i].descr)) {
            n->type = i;
            return 0;
        }
    if (d.len && d.p[0] == '>')
        return fault(n, e, "big-endian data; save it as little-endian");
    if (memchr(d.p, 'O', d.len))
        return fault(n, e, "dtype object; accepted: f16 f32 f64");
    return err_set(e, ERR_REQUEST, "command", NULL,
                   "%s: dtype '%.*s'; accepted: f16 f32 f64", n->path,
                   d.len < 32 ? (int)d.len : 32, d.p);
}

static int scan_order(Scan *s, Npy *n, Err *e) {
    skip(s);
    size_t left = (size_t)(s->end - s->p);
    if (left >= 4 && memcmp(s->p, "True", 4) == 0)
        return fault(n, e, "Fortran order; save it with np.ascontiguousarray");
    if (left < 5 || memcmp(s->p, "False", 5) != 0)
        return fault(n, e, "malformed header: fortran_order");
    s->p += 5;
    return 0;
}

static bool scan_dim(Scan *s, int64_t *out) {
    skip(s);
    Slice digits = {s->p, 0};
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
        s->p++;
    digits.len = (size_t)(s->p - digits.p);
    return digits.len && slice_int(digits, out);
}

static int scan_shape(Scan *s, Npy *n, Err *e) {
    bool more = eat(s, '(');
    if (!more)
        return fault(n, e, "malformed header: shape is no tuple");
    for (n->rank = 0; !eat(s, ')'); n->rank++) {
        if (n->rank == NPY_RANK)
            return fault(n, e, "too many dimensions; at most 8 are read");
        if (!more || !scan_dim(s, &n->dim[n->rank]))
            return fault(n, e, "malformed header: shape");
        more = eat(s, ',');
    }
    return 0;
}

/* {'descr': ..., 'fortran_order': ..., 'shape': ...,} in any order. */
static int scan_dict(Scan *s, Npy *n, Err *e) {
    static const struct {
        const char *key;
        int (*scan)(Scan *, Npy *, Err *);
    } keys[] = {{"descr", scan_descr},
                {"fortran_order", scan_order},
                {"shape", scan_shape}};
    unsigned seen = 0;
    bool more = eat(s, '{'), closed = false;
    while (more && !(closed = eat(s, '}'))) {
        Slice key;
        unsigned i = 0;
        if (!scan_quoted(s, &key) || !eat(s, ':'))
            return fault(n, e, "malformed header");
        while (i < 3 && !slice_is(key, keys[i].key))
            i++;
        if (i == 3 || seen & 1u << i)
            return fault(n, e, "malformed header: unknown or repeated key");
        seen |= 1u << i;
        int rc = keys[i].scan(s, n, e);
        if (rc)
            return rc;
        more = eat(s, ',') || (s->p < s->end && *s->p == '}');
    }
    skip(s);
    if (seen != 7 || !closed || s->p != s->end)
        return fault(n, e, "malformed header");
    return 0;
}

/* ---- reading ----------------------------------------------------------- */

static int read_header(Npy *n, Err *e) {
    unsigned char m[12];
    int rc = need(n, m, 8, e);
    if (rc)
        return rc;
    if (memcmp(m, "\x93NUMPY", 6) != 0)
        return fault(n, e, "not a .npy file");
    if (m[6] < 1 || m[6] > 3 || m[7])
        return fault(n, e,
                     "a version of .npy that is not known; accepted: "
                     "1.0, 2.0, 3.0");
    int wide = m[6] == 1 ? 2 : 4;
    rc = need(n, m + 8, (size_t)wide, e);
    if (rc)
        return rc;
    uint32_t len = m[8] | (uint32_t)m[9] << 8;
    if (wide == 4)
        len |= (uint32_t)m[10] << 16 | (uint32_t)m[11] << 24;
    if (len > HEADER_MAX)
        return fault(n, e, "an absurd header: longer than 65536 bytes");
    char *text = malloc(len + 1u);
    if (!text)
        return err_set(e, ERR_MEMORY, "command", NULL, "out of memory");
    rc = need(n, text, len, e);
    Scan s = {text, text + len};
    rc = rc ? rc : scan_dict(&s, n, e);
    free(text);
    return rc;
}

/* Elements and bytes without overflow, then against the size on disk. */
static int check_size(Npy *n, Err *e) {
    struct stat st;
    int64_t bytes = types[n->type].bytes, count = 1;
    bool over = false, empty = false;
    for (int i = 0; i < n->rank; i++)
        empty |= n->dim[i] == 0;
    for (int i = 0; i < n->rank && !empty; i++)
        over |= __builtin_mul_overflow(count, n->dim[i], &count);
    n->count = empty ? 0 : count;
    over |= __builtin_mul_overflow(n->count, bytes, &bytes);
    if (over)
        return fault(n, e, "an absurd header: its shape overflows");
    if (fstat(n->fd, &st) != 0)
        return io_fault(n, e);
    off_t at = lseek(n->fd, 0, SEEK_CUR);
    if (!S_ISREG(st.st_mode) || at < 0)
        return 0; /* a pipe: npy_read finds out */
    int64_t left = (int64_t)(st.st_size - at);
    if (left == bytes)
        return 0;
    char shape[160];
    return err_set(e, ERR_REQUEST, "command", NULL,
                   left < bytes ? "%s: truncated: %" PRId64 " bytes of data, "
                                  "its shape %s of %s needs %" PRId64
                                : "%s: trailing bytes: %" PRId64 " bytes of "
                                  "data, its shape %s of %s needs %" PRId64,
                   n->path, left, npy_shape(n, shape), types[n->type].name,
                   bytes);
}

int npy_open(const char *path, Npy *n, Err *e) {
    *n = (Npy){.path = path};
    n->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (n->fd < 0)
        return fault(n, e, strerror(errno));
    struct stat st;
    int rc = 0;
    if (fstat(n->fd, &st) == 0 && S_ISDIR(st.st_mode))
        rc = fault(n, e, "a directory, not a .npy file");
    rc = rc ? rc : read_header(n, e);
    rc = rc ? rc : check_size(n, e);
    if (rc)
        npy_close(n);
    return rc;
}

/* What becomes of m elements of the file, the first of them number i. */
typedef struct Sink {
    int (*take)(const struct Sink *s, const Npy *n, const void *from, int64_t i,
                int64_t m, Err *e);
    int dtype;
    void *out;
} Sink;

static int read_data(Npy *n, const Sink *s, Err *e) {
    union {
        double align;
        char bytes[CHUNK];
    } buf;
    int64_t per = CHUNK / types[n->type].bytes;
    int rc = 0;
    for (int64_t i = 0; i < n->count && !rc; i += per) {
        int64_t m = n->count - i < per ? n->count - i : per;
        ssize_t len = (ssize_t)(m * types[n->type].bytes);
        ssize_t got = read_full(n->fd, buf.bytes, (size_t)len);
        if (got < 0)
            return io_fault(n, e);
        if (got < len)
            return fault(n, e, "truncated");
        rc = s->take(s, n, buf.bytes, i, m, e);
    }
    ssize_t more = rc ? 0 : read_full(n->fd, buf.bytes, 1);
    if (more < 0)
        return io_fault(n, e);
    return more ? fault(n, e, "trailing bytes after its data") : rc;
}

static double element(int type, const void *data, int64_t i) {
    if (type == NPY_F64)
        return ((const double *)data)[i];
    if (type == NPY_F32)
        return ((const float *)data)[i];
    return f16_to_f32(((const uint16_t *)data)[i]);
}

static int take_values(const Sink *s, const Npy *n, const void *from, int64_t i,
                       int64_t m, Err *e) {
    (void)e;
    for (int64_t j = 0; j < m; j++)
        value_put(s->dtype, s->out, i + j, element(n->type, from, j));
    return 0;
}

int npy_read(Npy *n, int dtype, void *out, Err *e) {
    const Sink sink = {take_values, dtype, out};
    return read_data(n, &sink, e);
}

int npy_array_dtype(int type) {
    static const int dtypes[NPY_TYPES] = {
        [NPY_F16] = ARRAY_F16, [NPY_F32] = ARRAY_F32, [NPY_F64] = ARRAY_F32,
        [NPY_I32] = ARRAY_I32, [NPY_I64] = ARRAY_I32, [NPY_BOOL] = ARRAY_BOOL,
        [NPY_U8] = ARRAY_BITS};
    return dtypes[type];
}

static int take_wide(const Sink *s, const Npy *n, const int64_t *from,
                     int64_t i, int64_t m, Err *e) {
    int32_t *to = (int32_t *)s->out + i;
    for (int64_t j = 0; j < m; j++) {
        if (from[j] < INT32_MIN || from[j] > INT32_MAX)
            return err_set(
                e, ERR_REQUEST, "command", NULL,
                "%s: element %" PRId64 " is %" PRId64 "; nearest accepted: %d",
                n->path, i + j, from[j], from[j] < 0 ? INT32_MIN : INT32_MAX);
        to[j] = (int32_t)from[j];
    }
    return 0;
}

static int take_array(const Sink *s, const Npy *n, const void *from, int64_t i,
                      int64_t m, Err *e) {
    size_t bytes = (size_t)types[n->type].bytes;
    if (n->type == NPY_I64)
        return take_wide(s, n, from, i, m, e);
    if (n->type == NPY_F64)
        return take_values(s, n, from, i, m, e);
    memcpy((char *)s->out + (size_t)i * bytes, from, (size_t)m * bytes);
    return 0;
}

int npy_read_array(Npy *n, void *out, Err *e) {
    const Sink sink = {take_array, ATTNC_F32, out};
    return read_data(n, &sink, e);
}

void npy_close(Npy *n) {
    if (n->fd >= 0)
        close(n->fd);
    n->fd = -1;
}

static void put_dims(char *out, size_t cap, const int64_t *dim, int rank) {
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; i < rank && at < cap; i++)
        at += (size_t)snprintf(out + at, cap - at, "%s%" PRId64, i ? ", " : "",
                               dim[i]);
}

const char *npy_shape(const Npy *n, char text[160]) {
    char dims[150];
    put_dims(dims, sizeof dims, n->dim, n->rank);
    snprintf(text, 160, "[%s]", dims);
    return text;
}

/* ---- writing ----------------------------------------------------------- */

size_t npy_header(char out[512], const int64_t *dim, int rank) {
    return npy_header_of(out, "<f4", dim, rank);
}

size_t npy_header_of(char out[512], const char *descr, const int64_t *dim,
                     int rank) {
    char dims[200];
    put_dims(dims, sizeof dims, dim, rank);
    int len = snprintf(out + 10, 500,
                       "{'descr': '%s', 'fortran_order': False, "
                       "'shape': (%s%s), }",
                       descr, dims, rank == 1 ? "," : "");
    size_t total = ((size_t)len + 11 + 63) / 64 * 64; /* with the newline */
    memset(out + 10 + len, ' ', total - 10 - (size_t)len);
    out[total - 1] = '\n';
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = (char)((total - 10) & 0xff);
    out[9] = (char)((total - 10) >> 8);
    return total;
}
