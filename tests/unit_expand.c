/* SPDX-License-Identifier: Apache-2.0
 * Template text -> Lua chunk: two marks, line for line, errors at their
 * place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gen.h"

/* Expands `text`; the caller frees. */
static char *expand(const char *text) {
    Template t = {"a/b.c.in", text, strlen(text)};
    Str chunk = {0};
    Err e = {0};
    assert_int_equal(expand_chunk(&t, &chunk, &e), 0);
    return chunk.text ? chunk.text : strdup("");
}

static void expands(const char *text, const char *want) {
    char *got = expand(text);
    assert_string_equal(got, want);
    free(got);
}

static void fails(const char *text, const char *want) {
    Template t = {"a/b.c.in", text, strlen(text)};
    Str chunk = {0};
    Err e = {0};
    assert_int_equal(expand_chunk(&t, &chunk, &e), ERR_INTERNAL);
    assert_non_null(strstr(e.text, want));
    str_free(&chunk);
}

static void text_becomes_a_call(void **state) {
    (void)state;
    expands("int x;\n", "__(1,\"int x;\")\n");
    expands("", "");
    expands("\n", "__(1)\n");
}

static void a_dollar_line_is_lua(void **state) {
    (void)state;
    expands("$ if x then\na\n$ end\n", " if x then\n__(2,\"a\")\n end\n");
    expands("$\n", "\n");
}

static void values_stand_in_parentheses(void **state) {
    (void)state;
    expands("a ${x} b ${f(1, 2)}\n", "__(1,\"a \",(x),\" b \",(f(1, 2)))\n");
    expands("${x}${y}\n", "__(1,(x),(y))\n");
    expands("${f{1, 2}}\n", "__(1,(f{1, 2}))\n");
}

/* A `$` elsewhere, or before anything but `{`, is text. */
static void other_dollars_are_text(void **state) {
    (void)state;
    expands(" $ x $1 {}\n", "__(1,\" $ x $1 {}\")\n");
}

static void quotes_and_controls_survive(void **state) {
    (void)state;
    expands("\"a\\n\"\t\n", "__(1,\"\\\"a\\\\n\\\"\\009\")\n");
}

static void a_last_line_needs_no_newline(void **state) {
    (void)state;
    expands("a\nb", "__(1,\"a\")\n__(2,\"b\")\n");
    expands("$ x()", " x()\n");
}

/* Line n of the template is line n of the chunk. */
static void lines_stay_in_place(void **state) {
    (void)state;
    char *got = expand("a\n$ b\n\nc ${d}\n$ e\n");
    int lines = 0;
    for (const char *p = got; *p; p++)
        lines += *p == '\n';
    assert_int_equal(lines, 5);
    assert_non_null(strstr(got, "__(4,\"c \",(d))"));
    free(got);
}

static void errors_name_template_and_line(void **state) {
    (void)state;
    fails("a\n$ b\nc ${d\n", "a/b.c.in:3: `${` without its `}`");
    fails("\n${}\n", "a/b.c.in:2: `${}` holds no expression");
    fails("${f{}\n", "a/b.c.in:1: `${` without its `}`");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_becomes_a_call),
        cmocka_unit_test(a_dollar_line_is_lua),
        cmocka_unit_test(values_stand_in_parentheses),
        cmocka_unit_test(other_dollars_are_text),
        cmocka_unit_test(quotes_and_controls_survive),
        cmocka_unit_test(a_last_line_needs_no_newline),
        cmocka_unit_test(lines_stay_in_place),
        cmocka_unit_test(errors_name_template_and_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
