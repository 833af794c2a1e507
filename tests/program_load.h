/* SPDX-License-Identifier: Apache-2.0
 * What the tests of printed C share: compiling a text with the helpers of
 * program_helpers.h, and tensors as it knows them. */
#ifndef PROGRAM_LOAD_H
#define PROGRAM_LOAD_H

#include <dlfcn.h>
#include <unistd.h>

#include "program_util.h"

#define OPERANDS_C "const struct tensor *T, int b, int nq, int nk, int off, "

/* Compiles the text to a library and loads it. */
static inline void *load(const Str *text) {
    const char *source = getenv("SOURCE");
    char dir[] = "/tmp/attnc-program-XXXXXX", path[64], command[512];
    if (!source || system("cc --version >/dev/null 2>&1"))
        skip();
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/p.c", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "#include \"program_helpers.h\"\n");
    for (int t = 0; t < RANDOM_ARRAYS; t++)
        fprintf(f, "#define tensor_%s (&T[%d])\n",
                (const char *const[]){"doc", "len", "slope", "bias", "row",
                                      "on", "lit"}[t],
                t);
    fwrite(text->text, 1, text->len, f);
    fclose(f);
    snprintf(command, sizeof command,
             "cc -std=gnu11 -O1 -w -Wno-psabi -ffp-contract=off -I%s/tests "
             "-shared -fPIC -o %s/p.so %s -lm",
             source, dir, path);
    int status = system(command);
    snprintf(path, sizeof path, "%s/p.so", dir);
    void *library = status ? NULL : dlopen(path, RTLD_NOW);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
    assert_non_null(library);
    return library;
}

/* struct tensor of program_helpers.h. */
typedef struct Tensor {
    const void *at;
    int64_t n[4], step[4];
} Tensor;

static inline void fill_tensors(Tensor *tensor, const Data *data) {
    for (int t = 0; t < RANDOM_ARRAYS; t++) {
        tensor[t].at = data->array[t].at;
        memcpy(tensor[t].n, data->array[t].n, sizeof tensor[t].n);
        memcpy(tensor[t].step, data->array[t].stride, sizeof tensor[t].step);
    }
}

#endif
