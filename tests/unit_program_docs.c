/* SPDX-License-Identifier: Apache-2.0
 * docs/programs.md and docs/patterns.md say what the tables say, and every
 * program in them is one. */
#include "pattern.h"
#include "program_util.h"

static const char *page;

/* A bar inside a table's cell is written with a backslash. */
static void add_cell(Str *row, const char *text) {
    for (; *text; text++)
        str_addf(row, *text == '|' ? "\\|" : "%c", *text);
}

static void expect_row(Str *row) {
    assert_false(row->bad);
    if (!strstr(page, row->text))
        fail_msg("no row: %s", row->text);
    str_free(row);
}

static void add_form(Str *row, const OpRow *op) {
    if (op->precedence && op->nargs == 2) {
        str_addf(row, "a ");
        add_cell(row, op->spelling);
        str_addf(row, " b` | %d | ", op->precedence);
    } else if (op->precedence) {
        str_addf(row, "%sa` | %d | ", op->spelling, op->precedence);
    } else {
        str_addf(row, "%s(%s)` | call | ", op->spelling,
                 op->nargs == 1   ? "a"
                 : op->nargs == 2 ? "a, b"
                                  : "a, b, c");
    }
}

static void every_operation_is_listed(void **state) {
    (void)state;
    static const char *const rules[] = {
        [RULE_NUMBER] = "numbers: int, or float if either is",
        [RULE_INTEGER] = "int",
        [RULE_BITS] = "int, or bool",
        [RULE_ORDER] = "numbers -> bool",
        [RULE_EQUAL] = "two of one kind -> bool",
        [RULE_LOGIC] = "bool",
        [RULE_REAL] = "number -> float",
        [RULE_TO_INT] = "number -> int",
        [RULE_CHOICE] = "bool, then two of one kind"};
    page = source_text("docs/programs.md");
    for (int i = 0; i < OPS; i++) {
        Str row = {0};
        if (!program_ops[i].nargs)
            continue;
        str_addf(&row, "| `");
        add_form(&row, &program_ops[i]);
        str_addf(&row, "%s | ", rules[program_ops[i].rule]);
        add_cell(&row, program_ops[i].doc);
        str_addf(&row, " |\n");
        expect_row(&row);
    }
    for (int i = 0; i < OPERAND_dout; i++) {
        Str row = {0};
        str_addf(&row, "| `%s` | %s | %s |\n", program_operands[i].name,
                 program_type_name(program_operands[i].type),
                 program_operands[i].doc);
        expect_row(&row);
    }
}

static void expect_pattern(void *user, const char *name, const char *argument,
                           int64_t def, int64_t lo, int64_t hi,
                           const char *doc) {
    Str row = {0};
    (void)user;
    if (argument)
        str_addf(&row, "| | `%s` | %lld | %lld..%lld | ", argument,
                 (long long)def, (long long)lo, (long long)hi);
    else
        str_addf(&row, "| `%s` | | | | ", name);
    add_cell(&row, doc);
    str_addf(&row, " |\n");
    expect_row(&row);
}

static void every_pattern_is_listed(void **state) {
    (void)state;
    page = source_text("docs/patterns.md");
    pattern_rows(expect_pattern, NULL);
}

/* Parses the blocks fenced as `kind`; returns how many there are. */
static int parse_blocks(const char *text, const char *fence, int kind) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, fence)); n++) {
        p += strlen(fence);
        const char *end = strstr(p, "```");
        char *block = strndup(p, (size_t)(end - p));
        Program one = program(block, kind);
        char *canon = canonical(&one);
        Program again = program(canon, kind);
        program_free(&one);
        program_free(&again);
        free(canon);
        free(block);
        p = end;
    }
    return n;
}

static void every_example_is_a_program(void **state) {
    (void)state;
    const char *text = source_text("docs/programs.md");
    assert_true(parse_blocks(text, "```mask\n", PROGRAM_MASK) >= 4);
    assert_true(parse_blocks(text, "```score\n", PROGRAM_SCORE) >= 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_operation_is_listed),
        cmocka_unit_test(every_pattern_is_listed),
        cmocka_unit_test(every_example_is_a_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
