/* SPDX-License-Identifier: Apache-2.0
 * Loop bounds of a mask as C: statements over q0, q1 (first and last query)
 * and nk, all i64, with the helpers cut_keys and join_keys. */
#include "program_internal.h"

int bounds_terms(const ProgramBounds *x, int *node, int most) {
    int n = 0;
    for (int way = 0; way < x->nway; way++) {
        for (int i = 0; i < x->nfact[way]; i++) {
            const Affine *f = &x->fact[way][i];
            for (int t = 0; t < f->nterm; t++) {
                int k = 0;
                while (k < n && node[k] != f->term[t])
                    k++;
                if (k == n && n < most)
                    node[n++] = f->term[t];
            }
        }
    }
    return n;
}

typedef struct Printer {
    const Program *p;
    const int *roots;
    int nroots;
    const ProgramC *c;
    Str *out;
} Printer;

static void print_term(const Printer *x, int node) {
    str_addf(x->out, "(i64)(");
    program_c_value(x->p, x->roots, x->nroots, x->c, node, x->out);
    str_addf(x->out, ")");
}

/* " + 3 * x", without the 1 of 1 * x. */
static void print_factor(Str *out, int64_t mul) {
    int64_t size = mul < 0 ? -mul : mul;
    str_addf(out, mul < 0 ? " - " : " + ");
    if (size != 1)
        str_addf(out, "%lld * ", (long long)size);
}

/* What is left of a fact without k, where it is least, or most. */
static void print_rest(const Printer *x, const Affine *f, bool most) {
    str_addf(x->out, "%lld", (long long)f->add);
    if (f->q_mul) {
        print_factor(x->out, f->q_mul);
        str_addf(x->out, (f->q_mul > 0) == most ? "q1" : "q0");
    }
    for (int i = 0; i < f->nterm; i++) {
        print_factor(x->out, f->mul[i]);
        print_term(x, f->term[i]);
    }
}

/* Terms that come from tensors may lie where the fact was not made for.
 * Returns whether there is a guard. */
static bool print_guard(const Printer *x, const Affine *f) {
    bool guarded = false;
    for (int i = 0; i < f->nterm; i++) {
        if (!f->guard[i])
            continue;
        str_addf(x->out, guarded ? " && " : "        if (");
        print_term(x, f->term[i]);
        str_addf(x->out, " >= %d && ", f->lo[i]);
        print_term(x, f->term[i]);
        str_addf(x->out, " <= %d", f->hi[i]);
        guarded = true;
    }
    str_addf(x->out, guarded ? ")\n    " : "");
    return guarded;
}

static void print_way(const Printer *x, const ProgramBounds *b, int way,
                      bool every, const char *lo, const char *hi) {
    for (int i = 0; i < b->nfact[way]; i++) {
        const Affine *f = &b->fact[way][i];
        bool guarded = print_guard(x, f);
        str_addf(x->out, "        cut_keys(%lld, ", (long long)f->k_mul);
        print_rest(x, f, every);
        str_addf(x->out, ", &%s, &%s);\n", lo, hi);
        if (guarded && every)
            str_addf(x->out, "        else\n            %s = %s;\n", hi, lo);
    }
}

void program_c_bounds(const Program *p, const int *roots, int nroots,
                      const ProgramC *c, const ProgramBounds *b, Str *out) {
    const Printer x = {p, roots, nroots, c, out};
    bool exact = b->exact && b->nway == 1;
    str_addf(out, "    i64 lo = 0, hi = 0, all_lo = 0, all_hi = %s;\n",
             exact ? "nk" : "0");
    for (int way = 0; way < b->nway; way++) {
        str_addf(out, "    {\n        i64 begin = 0, end = nk;\n");
        print_way(&x, b, way, false, "begin", "end");
        str_addf(out, "        join_keys(begin, end, &lo, &hi);\n    }\n");
    }
    if (exact) {
        str_addf(out, "    {\n");
        print_way(&x, b, 0, true, "all_lo", "all_hi");
        str_addf(out, "    }\n    all_lo = all_lo < all_hi ? all_lo : all_hi;"
                      "\n");
    }
}
