/* SPDX-License-Identifier: Apache-2.0
 * Plan -> module: what templates see and may do, where each line came from,
 * and errors at the template's own line. */
#include "gen_util.h"
#include "runtime.h"

static Plan the_plan(const char *spec_text, const char *name,
                     const char *tile) {
    return plan(spec_text, "", name, &(Pins){.tile = tile});
}

/* Emits with `root` as cpu/module.c.in, `lib` as cpu/lib.lua and, beside
 * them, `part` as cpu/stage/part.c.in. */
static int emit_from(const char *lib, const char *root, const char *part,
                     Source *out, Err *e) {
    const Template t[] = {
        {"cpu/lib.lua", lib, strlen(lib)},
        {"cpu/module.c.in", root, strlen(root)},
        {"cpu/stage/part.c.in", part, strlen(part)},
    };
    const Templates all = {t, 3, ""};
    Plan p = the_plan("head_dim=8 dtype=f16 mask=causal", "avx2", NULL);
    const struct LuaApi *lua = lua_find(e);
    if (!lua)
        return e->code;
    return emit_module(&p, &all, lua, out, e);
}

static void emits(const char *root, const char *want) {
    Source s;
    Err e = {0};
    if (emit_from("", root, "part ${...}\n", &s, &e))
        fail_msg("%s", e.text);
    assert_string_equal(s.text.text ? s.text.text : "", want);
    source_free(&s);
}

static void fails(const char *lib, const char *root, const char *part,
                  const char *want) {
    Source s;
    Err e = {0};
    assert_int_equal(emit_from(lib, root, part, &s, &e), ERR_INTERNAL);
    if (!strstr(e.text, want))
        fail_msg("'%s' does not hold '%s'", e.text, want);
    assert_null(s.text.text);
}

/* ---- what templates see ------------------------------------------------ */

static void tables_hold_the_plan(void **state) {
    (void)state;
    emits("${S.dtype} ${S.mask} ${S.head_dim} ${S.alibi}\n",
          "f16 causal 8 false\n");
    emits("${P.mult_q} ${D.arch} ${D.vector_bytes}\n", "1 avx2 32.0\n");
    emits("${#steps} ${steps[1].role} ${steps[1].params[1].name} "
          "${steps[1].params[1].kind}\n",
          "1 fwd q pointer_in\n");
    emits("${steps[1].tile.block_q > 0} ${steps[1].scratch.qt}\n", "true 0\n");
}

static void includes_run_in_place(void **state) {
    (void)state;
    emits("a\n$ include(\"cpu/stage/part.c.in\", 7)\nb\n", "a\npart 7\nb\n");
    emits("${has_template(\"cpu/stage/part.c.in\")} ${has_template(\"x\")}\n",
          "true false\n");
}

static void lines_remember_their_template(void **state) {
    (void)state;
    Source s;
    Err e = {0};
    assert_int_equal(emit_from("",
                               "a\n$ for i = 1, 2 do\n$ include "
                               "\"cpu/stage/part.c.in\"\n$ end\nb\n",
                               "\nx\n", &s, &e),
                     0);
    const uint32_t want[] = {1 << 16 | 1, 2 << 16 | 1, 2 << 16 | 2,
                             2 << 16 | 1, 2 << 16 | 2, 1 << 16 | 5};
    assert_int_equal(s.nline, 6);
    assert_memory_equal(s.line, want, sizeof want);
    source_free(&s);
}

/* Nothing in a template reaches files, the clock or other code. */
static void the_environment_is_bare(void **state) {
    (void)state;
    static const char *const names[] = {
        "io",       "os",     "debug", "require", "load",
        "loadfile", "dofile", "print", "package", "coroutine"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Str root = {0};
        str_addf(&root, "${%s == nil}\n", names[i]);
        emits(root.text, "true\n");
        str_free(&root);
    }
}

/* ---- errors ------------------------------------------------------------ */

static void errors_are_at_the_templates_line(void **state) {
    (void)state;
    fails("", "a\n\n$ error(\"no\")\n", "", "cpu/module.c.in:3: no");
    fails("", "a\n$ local x = = 1\n", "", "cpu/module.c.in:2: ");
    fails("", "a\nb ${x.y}\n", "", "cpu/module.c.in:2: ");
    fails("", "a\nb\nc ${nothing}\n", "",
          "cpu/module.c.in:3: a value of this line is nil");
    fails("", "$ include \"cpu/stage/part.c.in\"\n", "\n\n${x\n",
          "cpu/stage/part.c.in:3: `${` without its `}`");
    fails("\nerror(\"bad\")\n", "", "", "cpu/lib.lua:2: bad");
    fails("", "$ include \"cpu/none.c.in\"\n", "",
          "cpu/module.c.in:1: no template is named cpu/none.c.in");
}

static void includes_do_not_nest_for_ever(void **state) {
    (void)state;
    fails("", "$ include \"cpu/module.c.in\"\n", "", "nested too deep");
}

/* ---- the project's own templates --------------------------------------- */

static void emit_all(const char *spec, const char *device, Source *out) {
    Plan p = the_plan(spec, device, NULL);
    Err e = {0};
    const struct LuaApi *lua = lua_find(&e);
    if (!lua || emit_module(&p, &attnc_templates, lua, out, &e))
        fail_msg("%s", e.text);
}

static void the_same_plan_gives_the_same_text(void **state) {
    (void)state;
    Source a, b;
    emit_all("mask=window alibi=1", "neon", &a);
    emit_all("mask=window alibi=1", "neon", &b);
    assert_string_equal(a.text.text, b.text.text);
    source_free(&a);
    source_free(&b);
}

/* Every line has its origin, no line has trailing blanks, and no template
 * mark is left. */
static void text_is_clean(void **state) {
    (void)state;
    static const char *const archs[] = {"avx2", "avx512", "avx512bf16", "neon",
                                        "portable"};
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        Source s;
        emit_all("dtype=bf16 mask=prefix softcap=1 sink=1", archs[i], &s);
        size_t lines = 0;
        for (const char *p = s.text.text; *p; p++) {
            lines += *p == '\n';
            assert_false(p[0] == ' ' && p[1] == '\n');
            assert_false(p[0] == '$' && p[1] == '{');
        }
        assert_int_equal(lines, s.nline);
        assert_null(strstr(s.text.text, "#include"));
        source_free(&s);
    }
}

static void a_misspelt_name_is_an_error(void **state) {
    (void)state;
    Source s;
    Err e = {0};
    const Template *lib = NULL;
    for (size_t i = 0; i < attnc_templates.count; i++)
        if (!strcmp(attnc_templates.t[i].name, "cpu/lib.lua"))
            lib = &attnc_templates.t[i];
    assert_non_null(lib);
    assert_int_equal(emit_from(lib->text, "a\n${bloc_q}\n", "", &s, &e),
                     ERR_INTERNAL);
    assert_non_null(strstr(e.text, "cpu/module.c.in:2: no such name: bloc_q"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_hold_the_plan),
        cmocka_unit_test(includes_run_in_place),
        cmocka_unit_test(lines_remember_their_template),
        cmocka_unit_test(the_environment_is_bare),
        cmocka_unit_test(errors_are_at_the_templates_line),
        cmocka_unit_test(includes_do_not_nest_for_ever),
        cmocka_unit_test(the_same_plan_gives_the_same_text),
        cmocka_unit_test(text_is_clean),
        cmocka_unit_test(a_misspelt_name_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
