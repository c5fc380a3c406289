#include "checkpoint/pieces.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* White_Space is spelled out: PCRE2's own Unicode \s also takes U+180E, which lost the property in Unicode 6.3. */
#define SPACES "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

/* Alternatives in order of priority. The seventh was meant as a negative look-ahead "(?!\S)"; its parenthesis is escaped
 * in the original, so it matches the characters "?!" and one that is no space, and we do the same. */
static const char pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
                              "|\\p{P}"
                              "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
                              "|\\p{N}"
                              "| ?[^" SPACES "\\p{L}\\p{N}]+[\\r\\n]*"
                              "|[" SPACES "]*[\\r\\n]+"
                              "|[" SPACES "]+\\?![^" SPACES "]"
                              "|[" SPACES "]+";

/* Backtracking happens in one run of white space only and visits each character a few times; a text of 400 000
 * characters (the longest we are given at once) stays far below this bound. */
enum { MATCH_LIMIT = 10 * 1000 * 1000 };

struct piece_rule {
    pcre2_code *code;
};

struct piece_match {
    const pcre2_code    *code;
    pcre2_match_data    *data;
    pcre2_match_context *context;
};

status_t piece_rule_open(struct piece_rule **out)
{
    int                error;
    PCRE2_SIZE         at;
    struct piece_rule *rule = calloc(1, sizeof *rule);
    if (!rule)
        return FAIL(ST_ENOMEM, "no memory for the tokenizer's pattern");
    rule->code = pcre2_compile((PCRE2_SPTR)pattern, sizeof pattern - 1, PCRE2_UTF, &error, &at, NULL);
    if (!rule->code) {
        char why[128];
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
        free(rule);
        return FAIL(ST_EINTERNAL, "tokenizer pattern, character %zu: %s", (size_t)at, why);
    }
    *out = rule;
    return ST_OK;
}

void piece_rule_close(struct piece_rule *rule)
{
    if (!rule)
        return;
    pcre2_code_free(rule->code);
    free(rule);
}

status_t piece_match_open(const struct piece_rule *rule, struct piece_match **out)
{
    struct piece_match *match = calloc(1, sizeof *match);
    if (!match)
        return FAIL(ST_ENOMEM, "no memory to match the tokenizer's pattern");
    match->code    = rule->code;
    match->data    = pcre2_match_data_create(1, NULL);
    match->context = pcre2_match_context_create(NULL);
    if (!match->data || !match->context) {
        piece_match_close(match);
        return FAIL(ST_ENOMEM, "no memory to match the tokenizer's pattern");
    }
    pcre2_set_match_limit(match->context, MATCH_LIMIT);
    *out = match;
    return ST_OK;
}

void piece_match_close(struct piece_match *match)
{
    if (!match)
        return;
    pcre2_match_data_free(match->data);
    pcre2_match_context_free(match->context);
    free(match);
}

status_t piece_next(struct piece_match *match, const char *text, size_t size, size_t at, size_t *end)
{
    /* Every character is in some alternative, so a match always starts exactly here. */
    int n = pcre2_match(match->code, (PCRE2_SPTR)text, size, at, PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, match->data,
                        match->context);
    if (n < 0) {
        char why[128];
        pcre2_get_error_message(n, (PCRE2_UCHAR *)why, sizeof why);
        return FAIL(n == PCRE2_ERROR_NOMEMORY || n == PCRE2_ERROR_HEAPLIMIT ? ST_ENOMEM : ST_EINTERNAL,
                    "tokenizer pattern at byte %zu of a text: %s", at, why);
    }
    *end = pcre2_get_ovector_pointer(match->data)[1];
    return ST_OK;
}
