/* SPDX-License-Identifier: Apache-2.0
 * NumPy's .npy files, in and out: C order, little-endian, versions 1.0-3.0. */
#ifndef ATTNC_NPY_H
#define ATTNC_NPY_H

#include "gen.h"

/* X(suffix, name, descr, bytes): the element types that are known. */
/* clang-format off */
#define NPY_LIST(X)                                                            \
    X(F16, "f16", "<f2", 2) X(F32, "f32", "<f4", 4) X(F64, "f64", "<f8", 8)    \
    X(I32, "i32", "<i4", 4) X(I64, "i64", "<i8", 8) X(BOOL, "bool", "|b1", 1) \
    X(U8, "u8", "|u1", 1)
enum npy_type {
#define X(suffix, name, descr, bytes) NPY_##suffix,
    NPY_LIST(X)
#undef X
    NPY_TYPES
};
/* clang-format on */

enum { NPY_RANK = 8 };

/* An open file whose header was read and found good; the data follow. */
typedef struct Npy {
    const char *path; /* the caller's */
    int fd;           /* -1: not open */
    int type;         /* enum npy_type */
    int rank;
    int64_t dim[NPY_RANK];
    int64_t count; /* elements */
} Npy;

/* Every fault of a file is ERR_REQUEST with one line that names the file;
 * a read that the system fails is ATTNC_E_IO. */
int npy_open(const char *path, Npy *n, Err *e);
/* Reads the data (f16, f32 or f64 only) as elements of `dtype` (enum
 * attnc_dtype), rounded to nearest even, into count elements at `out`. The
 * file must end with the last one. */
int npy_read(Npy *n, int dtype, void *out, Err *e);
/* Reads the data as a program's tensor: f64 becomes f32, i64 i32 where it fits
 * (else ERR_REQUEST), u8 is eight bits, the others stay; dtype: enum
 * program_dtype. */
int npy_read_array(Npy *n, void *out, Err *e);
int npy_array_dtype(int type);
void npy_close(Npy *n);
/* "[1, 8, 70, 64]", for messages. */
const char *npy_shape(const Npy *n, char text[160]);
const char *npy_type_name(int type); /* f16 f32 ... */

/* Header of a version 1.0 file of C-ordered f32; its length, a multiple of
 * 64. */
size_t npy_header(char out[512], const int64_t *dim, int rank);
/* The same for elements that NumPy calls `descr`: "|b1" is bool. */
size_t npy_header_of(char out[512], const char *descr, const int64_t *dim,
                     int rank);

#endif
