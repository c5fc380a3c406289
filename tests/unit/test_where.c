#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "sweep/where.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* bf16, batch 4, context 64, temperature 0.7, memory limit 8 GB, greedy off, model "a dir" */
static struct cell sample_cell(void)
{
    struct cell c;
    cell_defaults(&c);
    c.batch        = 4;
    c.context      = 64;
    c.memory_limit = 8000000000;
    assert_int_equal(cell_set_model(&c, "a dir"), ST_OK);
    return c;
}

static bool holds(const char *text)
{
    struct where *w;
    struct cell   c = sample_cell();
    if (where_parse(text, "where", ST_EINPUT, &w) != ST_OK)
        fail_msg("%s is refused", text);
    bool result = where_holds(w, &c);
    where_free(w);
    cell_free(&c);
    return result;
}

static void filters_say_what_they_mean(void **state)
{
    static const struct {
        const char *text;
        bool        holds;
    } cases[] = {
        {"batch == 4", true},
        {"batch != 4", false},
        {"batch < 4", false},
        {"batch <= 4", true},
        {"batch > 4", false},
        {"batch >= 4", true},
        {"4 == batch", true},
        {"batch <= 8 or precision == int8", true},
        {"batch <= 2 or precision == int8", false},
        {"batch <= 2 || precision == bf16", true},
        {"batch == 4 && precision == bf16", true},
        {"precision == \"bf16\"", true},
        {"precision != 'bf16'", false},
        {"precision in [fp32, bf16]", true},
        {"precision not in [fp32, bf16]", false},
        {"batch in [1, 2, 3 + 1]", true},
        {"batch in [1, 2]", false},
        {"not batch == 4", false},
        {"!(batch == 4)", false},
        {"not not batch == 4", true},
        {"greedy", false},
        {"not greedy", true},
        {"greedy == false", true},
        {"control_tokens or batch == 4", true},
        {"batch * context == 256", true},
        {"batch + context * 2 == 132", true},
        {"(batch + context) * 2 == 136", true},
        {"context / batch == 16", true},
        {"context - batch - 10 == 50", true},
        {"context % 10 == 4", true},
        {"-batch == 0 - 4", true},
        {"- -batch == 4", true},
        {"batch / 0 > 1", true},
        {"temperature == 0.7", true},
        {"temperature >= 0.7 and temperature <= 0.7", true},
        {"memory_limit == 8GB", true},
        {"memory_limit < 8GiB", true},
        {"model == \"a dir\"", true},
        {"model != x", true},
        {"kv == precision", true},
        {"batch == 4 or batch == 5 and batch == 6", true}, /* and binds tighter */
        {"(batch == 4 or batch == 5) and batch == 6", false},
        {"  batch==4\n\tand context==64 ", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (holds(cases[i].text) != cases[i].holds)
            fail_msg("%s is %s", cases[i].text, cases[i].holds ? "false" : "true");
}

static void mistakes_are_named(void **state)
{
    static const struct {
        const char *text, *complaint;
    } cases[] = {
        {"", "at the end"},
        {"batch", "must be true or false"},
        {"batch ==", "at the end"},
        {"batch = 4", "written =="},
        {"bacth == 4", "\"bacth\" is not a value of a cell (did you mean batch?)"},
        {"batch == many", "\"many\" is not a value of a cell"},
        {"precision == int9", "want one of fp32, bf16, int8 (did you mean int8?)"},
        {"precision in [bf16, int9]", "want one of fp32, bf16, int8"},
        {"precision < int8", "only numbers have an order"},
        {"precision == 4", "cannot be compared"},
        {"greedy == 1", "cannot be compared"},
        {"precision + 1 == 2", "arithmetic needs numbers"},
        {"1 < batch < 8", "do not chain"},
        {"batch == 4 and", "at the end"},
        {"batch == 4 batch == 5", "want \"and\", \"or\" or the end"},
        {"batch and greedy", "join comparisons"},
        {"(batch == 4", "want \")\""},
        {"batch in 4", "want a list"},
        {"batch in [4", "want \",\" or \"]\""},
        {"batch not 4", "want \"in\""},
        {"precision == \"bf16", "not closed"},
        {"memory_limit < 8XB", "such as 8GB"},
        {"batch < 1.2.3", "want a number"},
        {"batch < 99999999999999999999999999999999999999999999999999", "too long"},
        {"not batch", "\"not\" needs a comparison"},
        {"-precision == bf16", "only a number has a sign"},
        {"bf16", "\"bf16\" is not a value of a cell"},
        {"bf16 == bf16", "\"bf16\" is not a value of a cell"},
        {"batch == 4 # 5", "at \"# 5\""},
        {"batch\n= 4", "at \"= 4\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct where *w = NULL;
        assert_int_equal(where_parse(cases[i].text, "job.yaml:7: where", ST_EINPUT, &w), ST_EINPUT);
        assert_null(w);
        if (!strstr(status_last(), cases[i].complaint) || strncmp(status_last(), "job.yaml:7: where: ", 19) != 0)
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].text, status_last(), cases[i].complaint);
        assert_null(strchr(status_last(), '\n'));
    }
}

static void endless_filters_are_refused(void **state)
{
    static const char *const units[] = {"(", "not ", "-", "batch+", "batch==1 or ", "!"};
    char                     text[3 * WHERE_BYTES_MAX];
    for (int i = 0; i < 6; i++) {
        struct where *w = NULL;
        text[0]         = '\0';
        while (strlen(text) + strlen(units[i]) < WHERE_BYTES_MAX - 16)
            strcat(text, units[i]);
        assert_int_equal(where_parse(text, "where", ST_EINPUT, &w), ST_EINPUT);
        while (strlen(text) < WHERE_BYTES_MAX)
            strcat(text, units[i]);
        assert_int_equal(where_parse(text, "where", ST_EUSAGE, &w), ST_EUSAGE);
        assert_null(w);
    }
}

/* A random expression as text, and its value by the same rules. */
struct expression {
    char   text[2048];
    double value;
};

static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static struct expression random_sum(int depth)
{
    struct expression e, a, b;
    if (depth == 0 || random_below(3) == 0) {
        bool name = random_below(2);
        e.value   = name ? 4 : (double)random_below(9);
        snprintf(e.text, sizeof e.text, name ? "batch" : "%.0f", e.value);
        return e;
    }
    char sign = "+-*"[random_below(3)];
    a         = random_sum(depth - 1);
    b         = random_sum(depth - 1);
    e.value   = sign == '+' ? a.value + b.value : sign == '-' ? a.value - b.value : a.value * b.value;
    snprintf(e.text, sizeof e.text, "(%.900s %c %.900s)", a.text, sign, b.text);
    return e;
}

static struct expression random_truth(int depth)
{
    struct expression e, a, b;
    if (depth == 0 || random_below(4) == 0) {
        a       = random_sum(2);
        b       = random_sum(2);
        e.value = a.value <= b.value;
        snprintf(e.text, sizeof e.text, "%.900s <= %.900s", a.text, b.text);
        return e;
    }
    a = random_truth(depth - 1);
    if (random_below(4) == 0) {
        e.value = a.value == 0;
        snprintf(e.text, sizeof e.text, "not (%.1900s)", a.text);
        return e;
    }
    b        = random_truth(depth - 1);
    bool and = random_below(2);
    e.value  = and ? a.value != 0 && b.value != 0 : a.value != 0 || b.value != 0;
    snprintf(e.text, sizeof e.text, "(%.900s) %s (%.900s)", a.text, and ? "and" : "or", b.text);
    return e;
}

static void random_filters_evaluate_as_the_same_expression_in_c(void **state)
{
    enum { FILTERS = 3000, DEEP = 3 };
    random_state = (uint64_t)time(NULL);
    print_message("# seed %llu\n", (unsigned long long)random_state);
    for (int i = 0; i < FILTERS; i++) {
        struct expression e = random_truth(DEEP);
        if (holds(e.text) != (e.value != 0))
            fail_msg("%s is not %g", e.text, e.value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(filters_say_what_they_mean),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(endless_filters_are_refused),
        cmocka_unit_test(random_filters_evaluate_as_the_same_expression_in_c),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
