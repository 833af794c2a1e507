/* SPDX-License-Identifier: Apache-2.0
 * record_vectors TARGET FILE: runs each primitive alone on cuda, cuda:N or
 * emu:ARCH and writes what came out. ./run gpu calls it; the emulated device is
 * held to the file from then on. Exit 0, or 1 with a line on stderr. */
#include "vectors.h"

#include "cuda_internal.h"

static int say(const char *what, const Err *e) {
    fprintf(stderr, "record_vectors: %s: %s\n", what, e->text);
    return 1;
}

/* ---- the GPU -------------------------------------------------------- */

typedef struct Gpu {
    const Cuda *c;
    CuLibrary library;
    CuPointer in, out;
} Gpu;

static int number_of(const char *arch) {
    return atoi(arch + strlen("sm_")) * 10;
}

static int compile(const Device *d, Blob *out, char version[96], Err *e) {
    Str log = {0};
    Source source = {
        .text = kernel_text(VECTORS_TEXT, number_of(d->arch), "", true)};
    const CudaJob job = {.dirs = getenv("ATTNC_CUDA_DIRS"),
                         .arch = d->arch,
                         .source = &source,
                         .templates = &attnc_templates};
    int rc = nvrtc_compile(&job, out, version, &log, e);
    if (rc && log.text)
        fputs(log.text, stderr);
    str_free(&log);
    str_free(&source.text);
    return rc;
}

static int gpu_open(Gpu *g, int ordinal, Device *d, char version[96], Err *e) {
    CuDevice device;
    CuContext context;
    Blob cubin = {0};
    g->c = cuda_find(e);
    if (!g->c || cuda_query(ordinal, d, e) || compile(d, &cubin, version, e))
        return e->code;
    int code = g->c->device_get(&device, ordinal);
    code = code ? code : g->c->primary_retain(&context, device);
    code = code ? code : g->c->context_push(context);
    code = code ? code
                : g->c->library_load(&g->library, cubin.data, NULL, NULL, 0,
                                     NULL, NULL, 0);
    code = code ? code : g->c->alloc(&g->in, sizeof(VectorIn));
    code = code ? code : g->c->alloc(&g->out, sizeof(VectorOut));
    free(cubin.data);
    return code ? cuda_failed(g->c, code, ATTNC_E_LAUNCH, "open", "the driver",
                              e)
                : 0;
}

static int gpu_run(const Gpu *g, const Vector *v, int number, VectorOut *out,
                   Err *e) {
    VectorIn in = vector_input(v, number);
    CuKernel kernel;
    CuPointer slots[] = {g->in, g->out};
    void *params[] = {slots};
    int code = g->c->library_kernel(&kernel, g->library, v->entry);
    code = code ? code : g->c->copy(g->in, (uintptr_t)&in, sizeof in);
    code = code ? code
                : g->c->launch(kernel, 1, 1, 1, WARP, 1, 1, WARP * 16, NULL,
                               params, NULL);
    code = code ? code : g->c->copy((uintptr_t)out, g->out, sizeof *out);
    return code ? cuda_failed(g->c, code, ATTNC_E_LAUNCH, v->name, "the driver",
                              e)
                : 0;
}

static void gpu_close(Gpu *g) {
    g->c->free(g->in);
    g->c->free(g->out);
    g->c->library_unload(g->library);
}

/* ---- either ----------------------------------------------------------- */

typedef struct Recorder {
    bool emulated;
    Loaded kernel;
    Gpu gpu;
    Device device;
    char by[96];
} Recorder;

static int open_target(Recorder *r, const char *target, Err *e) {
    r->emulated = !strncmp(target, "emu:", 4);
    if (!r->emulated)
        return gpu_open(&r->gpu,
                        strncmp(target, "cuda:", 5) ? 0 : atoi(target + 5),
                        &r->device, r->by, e);
    snprintf(r->by, sizeof r->by, "the emulated device");
    if (device_find(target, &r->device, e))
        return e->code;
    r->kernel =
        kernel_load(VECTORS_TEXT, number_of(r->device.arch), "", "v_shared");
    return 0;
}

static void close_target(Recorder *r) {
    if (r->emulated)
        kernel_unload(&r->kernel);
    else
        gpu_close(&r->gpu);
}

static int record(Recorder *r, const Vector *v, json_t *into, Err *e) {
    json_t *cases = json_array();
    json_object_set_new(into, v->name, cases);
    for (int n = 0; n < CASES; n++) {
        VectorOut out;
        if (r->emulated)
            out = vector_emulate(v, &r->kernel, n);
        else if (gpu_run(&r->gpu, v, n, &out, e))
            return e->code;
        json_array_append_new(cases, vector_json(v, &out));
    }
    return 0;
}

int main(int argc, char **argv) {
    Recorder r = {.emulated = false};
    Err e = {0};
    json_t *file = json_object(), *all = json_object();
    if (argc != 3) {
        fputs("record_vectors: call it with TARGET FILE\n", stderr);
        return 1;
    }
    if (open_target(&r, argv[1], &e))
        return say(argv[1], &e);
    json_object_set_new(file, "chip", json_string(r.device.name));
    json_object_set_new(file, "arch", json_string(r.device.arch));
    json_object_set_new(file, "by", json_string(r.by));
    json_object_set_new(file, "vectors", all);
    for (int i = 0; i < VECTORS; i++)
        if (vectors[i].arch <= number_of(r.device.arch) &&
            record(&r, &vectors[i], all, &e))
            return say(vectors[i].name, &e);
    if (json_dump_file(file, argv[2], JSON_INDENT(1))) {
        fprintf(stderr, "record_vectors: cannot write %s\n", argv[2]);
        return 1;
    }
    json_decref(file);
    close_target(&r);
    return 0;
}
