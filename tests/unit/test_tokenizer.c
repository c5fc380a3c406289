/* Pieces, byte-pair merging and special tokens against the published test vectors and against slow twins. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/utf8.h"
#include "checkpoint/bpe.h"
#include "checkpoint/pieces.h"
#include "checkpoint/tokenizer.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- a vocabulary made here ---- */

struct vocabulary {
    char  *text; /* as a .tiktoken file */
    size_t size;
    int    count;
};

static void append_token(struct vocabulary *v, const void *bytes, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t    *s = bytes;
    v->text = realloc(v->text, v->size + 2 * size + 32);
    assert_non_null(v->text);
    for (size_t i = 0; i < size; i += 3) {
        uint32_t word = (uint32_t)s[i] << 16 | (i + 1 < size ? (uint32_t)s[i + 1] << 8 : 0) | (i + 2 < size ? s[i + 2] : 0u);
        for (int k = 0; k < 4; k++)
            v->text[v->size++] = i + (size_t)k > size ? '=' : digits[word >> (18 - 6 * k) & 63];
    }
    v->size += (size_t)sprintf(v->text + v->size, " %d\n", v->count++);
}

static struct vocabulary byte_vocabulary(void)
{
    struct vocabulary v = {0};
    for (int byte = 0; byte < 256; byte++)
        append_token(&v, &(uint8_t){(uint8_t)byte}, 1);
    return v;
}

static struct tokenizer *open_tokenizer(const struct vocabulary *v, const char *specials)
{
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_parse(v->text, v->size, specials, specials ? strlen(specials) : 0, "test", &t), ST_OK);
    return t;
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* ---- pieces ---- */

static const struct {
    const char *text;
    const char *pieces[16];
} cut_vectors[] = {
    {"<|speaker:0|>", {"<|", "speaker", ":", "0", "|>"}},
    {"Hello, this is a test of the text to speech system.",
     {"Hello", ",", " this", " is", " a", " test", " of", " the", " text", " to", " speech", " system", "."}},
    {"今天天气真好，阳光明媚。I hope you're having a wonderful day!",
     {"今天天气真好", "，", "阳光明媚", "。", "I", " hope", " you", "'re", " having", " a", " wonderful", " day", "!"}},
    {"Warmup test sentence.", {"Warmup", " test", " sentence", "."}},
    {"a  b", {"a", "  ", "b"}},
    {"x \n\n y", {"x", " \n\n", " y"}},
    {"  ?!x ok", {"  ?!x", " ok"}},
    {" ?!x", {" ?!", "x"}},
    {"It'S 123.45 $foo_bar", {"It", "'S", " ", "1", "2", "3", ".", "4", "5", " $", "foo", "_", "bar"}},
    {"🐟 naïve café\t\tend ", {"🐟", " naïve", " café", "\t\t", "end", " "}},
    {"你好，世界。", {"你好", "，", "世界", "。"}},
    /* Long s and the Kelvin sign fold to ASCII letters; only the former is in a contraction. */
    {"'ſx 'Kx", {"'ſ", "x", " '", "Kx"}},
    {"a\xe2\x80\x8a\xe2\x80\x8a" "b", {"a", "\xe2\x80\x8a\xe2\x80\x8a", "b"}}, /* U+200A twice is white space    */
    {"\xe1\xa0\x8e\xe1\xa0\x8e", {"\xe1\xa0\x8e\xe1\xa0\x8e"}},                     /* U+180E is none: alternative 5  */
    {" \xe1\xa0\x8e", {" \xe1\xa0\x8e"}},
    {"e\xcc\x81t\xcc\x81", {"e", "\xcc\x81t", "\xcc\x81"}}, /* combining marks are no letters */
    {"+=\r\n\r\n<", {"+=\r\n\r\n", "<"}},
    {" \n \n  x", {" \n \n", "  ", "x"}},
    {"Ⅷ½²", {"Ⅷ", "½", "²"}},
    {"we'LL'd've", {"we", "'LL", "'d", "'ve"}},
};

static void the_cut_equals_the_published_pieces(void **state)
{
    struct piece_rule  *rule  = NULL;
    struct piece_match *match = NULL;
    assert_int_equal(piece_rule_open(&rule), ST_OK);
    assert_int_equal(piece_match_open(rule, &match), ST_OK);
    for (size_t v = 0; v < sizeof cut_vectors / sizeof *cut_vectors; v++) {
        const char *text = cut_vectors[v].text;
        size_t      size = strlen(text), at = 0, end, k = 0;
        for (; at < size; at = end, k++) {
            assert_int_equal(piece_next(match, text, size, at, &end), ST_OK);
            const char *want = k < 16 ? cut_vectors[v].pieces[k] : NULL;
            if (!want || strlen(want) != end - at || memcmp(want, text + at, end - at))
                fail_msg("\"%s\", piece %zu: \"%.*s\", want \"%s\"", text, k, (int)(end - at), text + at, want ? want : "");
        }
        assert_true(k == 16 || !cut_vectors[v].pieces[k]);
    }
    piece_match_close(match);
    piece_rule_close(rule);
}

/* ---- merging ---- */

/* The definition, spelled out: merge the leftmost pair of smallest rank until none is left. */
static size_t merge_slowly(const struct bpe *b, const char *piece, size_t size, int32_t *ids)
{
    size_t starts[512], n = size;
    for (size_t i = 0; i <= size; i++)
        starts[i] = i;
    if (bpe_rank(b, piece, size) < 0)
        for (;;) {
            size_t  best      = 0;
            int32_t best_rank = INT32_MAX;
            for (size_t i = 0; i + 1 < n; i++) {
                int32_t rank = bpe_rank(b, piece + starts[i], starts[i + 2] - starts[i]);
                if (rank >= 0 && rank < best_rank) {
                    best_rank = rank;
                    best      = i;
                }
            }
            if (best_rank == INT32_MAX)
                break;
            memmove(&starts[best + 1], &starts[best + 2], (n - best - 1) * sizeof *starts);
            n--;
        }
    else {
        n         = 1;
        starts[1] = size;
    }
    for (size_t i = 0; i < n; i++)
        ids[i] = bpe_rank(b, piece + starts[i], starts[i + 1] - starts[i]);
    return n;
}

static void merging_with_a_heap_equals_the_definition(void **state)
{
    uint64_t seed = 20250117, random = seed;
    print_message("# seed %llu\n", (unsigned long long)seed);
    struct bpe_work work = {0};
    for (int round = 0; round < 200; round++) {
        /* Three letters only, so that nearly every neighbourhood can merge in several ways. */
        struct vocabulary v = byte_vocabulary();
        char              seen[512][8] = {{0}};
        for (int k = 0; k < 120; k++) {
            char   token[8] = {0};
            size_t size     = 2 + next_random(&random) % 5;
            bool   twice    = false;
            for (size_t i = 0; i < size; i++)
                token[i] = (char)('a' + next_random(&random) % 3);
            for (int j = 256; j < v.count; j++)
                twice |= strcmp(seen[j], token) == 0;
            if (!twice) {
                strcpy(seen[v.count], token);
                append_token(&v, token, size);
            }
        }
        struct bpe *b = NULL;
        assert_int_equal(bpe_parse(v.text, v.size, "test", &b), ST_OK);
        for (int k = 0; k < 20; k++) {
            char    piece[300];
            int32_t got[300], want[300];
            size_t  size = 1 + next_random(&random) % 300, n = 0;
            for (size_t i = 0; i < size; i++)
                piece[i] = (char)('a' + next_random(&random) % 3);
            assert_int_equal(bpe_encode(b, piece, size, &work, got, &n), ST_OK);
            size_t n_want = merge_slowly(b, piece, size, want);
            if (n != n_want || memcmp(got, want, n * sizeof *got))
                fail_msg("seed %llu, round %d: %.*s encodes differently", (unsigned long long)seed, round, (int)size, piece);
        }
        bpe_close(b);
        free(v.text);
    }
    bpe_work_free(&work);
}

static void a_piece_of_2_to_the_18_equal_letters_merges_completely(void **state)
{
    struct vocabulary v = byte_vocabulary();
    char              token[1024];
    memset(token, 'a', sizeof token);
    for (size_t size = 2; size <= sizeof token; size *= 2)
        append_token(&v, token, size);
    struct tokenizer *t = open_tokenizer(&v, NULL);
    /* 2^18 letters stay under the chunk of 400 000 characters; the whole piece becomes tokens of 1024 letters. */
    size_t   size = 1 << 18, n = 0;
    char    *text = malloc(size);
    int32_t *ids  = NULL;
    assert_non_null(text);
    memset(text, 'a', size);
    assert_int_equal(tokenizer_encode(t, text, size, true, &ids, &n), ST_OK);
    assert_int_equal(n, size / 1024);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(ids[i], v.count - 1);
    free(ids);
    free(text);
    tokenizer_close(t);
    free(v.text);
}

/* ---- whole texts ---- */

/* With single bytes only, the ids are the bytes: whatever is lost, doubled or moved shows. */
static void without_merges_the_ids_are_the_bytes(void **state)
{
    static const char *const alphabet[] = {" ", "\t", "\n", "\r", "a", "Z", "é", "1", "½", "$", "?!", "'s", "，", "🐟", "<|",
                                           "\xcc\x81", "\xe3\x80\x80", "你", "\xe1\xa0\x8e", "|>"};
    uint64_t          seed = 7, random = seed;
    struct vocabulary v = byte_vocabulary();
    struct tokenizer *t = open_tokenizer(&v, NULL);
    print_message("# seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 500; round++) {
        char     text[1024];
        size_t   size = 0, n = 0;
        int32_t *ids = NULL;
        for (int k = (int)(next_random(&random) % 100); k > 0; k--) {
            const char *part = alphabet[next_random(&random) % (sizeof alphabet / sizeof *alphabet)];
            memcpy(text + size, part, strlen(part));
            size += strlen(part);
        }
        assert_int_equal(tokenizer_encode(t, text, size, true, &ids, &n), ST_OK);
        assert_int_equal(n, size);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(ids[i], (unsigned char)text[i]);
        free(ids);
    }
    tokenizer_close(t);
    free(v.text);
}

static void a_chunk_border_cuts_a_word_where_the_original_does(void **state)
{
    struct vocabulary v = byte_vocabulary();
    append_token(&v, "ab", 2);
    struct tokenizer *t = open_tokenizer(&v, NULL);
    /* 399 999 times U+00E9, then "ab": the border of 400 000 characters falls between a and b. */
    size_t   n_wide = 399999, n = 0;
    char    *text = malloc(2 * n_wide + 2);
    int32_t *ids  = NULL;
    assert_non_null(text);
    for (size_t i = 0; i < n_wide; i++)
        memcpy(text + 2 * i, "é", 2);
    memcpy(text + 2 * n_wide, "ab", 2);
    assert_int_equal(tokenizer_encode(t, text, 2 * n_wide + 2, false, &ids, &n), ST_OK);
    assert_int_equal(n, 2 * n_wide + 2);
    assert_int_equal(ids[n - 2], 'a');
    assert_int_equal(ids[n - 1], 'b');
    free(ids);
    assert_int_equal(tokenizer_encode(t, text + 2, 2 * n_wide, false, &ids, &n), ST_OK);
    assert_int_equal(ids[n - 1], 256);
    free(ids);
    free(text);
    tokenizer_close(t);
    free(v.text);
}

static void expect_ids(const struct tokenizer *t, const char *text, bool specials, const int32_t *want, size_t n_want)
{
    int32_t *ids = NULL;
    size_t   n   = 0;
    assert_int_equal(tokenizer_encode(t, text, strlen(text), specials, &ids, &n), ST_OK);
    if (n != n_want || memcmp(ids, want, n * sizeof *ids))
        fail_msg("\"%s\": other ids than wanted (%zu, want %zu)", text, n, n_want);
    free(ids);
}

static void special_tokens_count_only_when_asked(void **state)
{
    struct vocabulary v = byte_vocabulary();
    struct tokenizer *t = open_tokenizer(&v, NULL);
    assert_int_equal(tokenizer_size(t), 256 + 15 + 4096);
    assert_int_equal(tokenizer_special(t, "<|begin_of_text|>"), 256);
    assert_int_equal(tokenizer_special(t, "<|im_end|>"), 260);
    assert_int_equal(tokenizer_special(t, "<|interleave|>"), 267);
    assert_int_equal(tokenizer_special(t, "<|semantic:0|>"), 271);
    assert_int_equal(tokenizer_special(t, "<|semantic:4095|>"), 271 + 4095);
    assert_int_equal(tokenizer_special(t, "<|speaker:0|>"), -1);
    assert_int_equal(tokenizer_special(t, "<|semantic:"), -1);
    expect_ids(t, "a<|im_end|>b<|semantic:17|><|pad|", true,
               (int32_t[]){'a', 260, 'b', 288, '<', '|', 'p', 'a', 'd', '|'}, 10);
    expect_ids(t, "<|pad|>", false, (int32_t[]){'<', '|', 'p', 'a', 'd', '|', '>'}, 7);
    expect_ids(t, "", true, (int32_t[]){0}, 0);
    tokenizer_close(t);
    free(v.text);
}

static void the_longest_special_token_wins_and_file_order_numbers_them(void **state)
{
    struct vocabulary v = byte_vocabulary();
    /* The ids written in the file are ignored, as in the original. */
    struct tokenizer *t = open_tokenizer(&v, "{\"zz\": 900, \"z\": 5, \"zzy\": 256, \"\xc3\xa9\": 0}");
    assert_int_equal(tokenizer_size(t), 260);
    expect_ids(t, "zzzyzzy\xc3\xa9", true, (int32_t[]){256, 257, 'y', 258, 259}, 5);
    tokenizer_close(t);
    free(v.text);
}

/* ---- bad input ---- */

static void text_that_is_not_utf8_is_refused(void **state)
{
    static const char *const bad[] = {"\x80", "a\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\xff",
                                      "\xf0\x8f\xbf\xbf", "\xe0\x9f\xbf"};
    struct vocabulary v = byte_vocabulary();
    struct tokenizer *t = open_tokenizer(&v, NULL);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int32_t *ids = NULL;
        size_t   n   = 0;
        assert_int_equal(tokenizer_encode(t, bad[i], strlen(bad[i]), true, &ids, &n), ST_EINPUT);
        assert_null(ids);
    }
    assert_int_equal(utf8_first_bad("aé\xed\xa0\x80", 6), 3);
    assert_int_equal(utf8_first_bad("\xf4\x8f\xbf\xbf\xee\x80\x80", 7), 7);
    tokenizer_close(t);
    free(v.text);
}

static void a_broken_vocabulary_is_refused(void **state)
{
    static const char *const bad_lines[] = {
        "YWI= 256 7\n", /* a third field        */
        "YWI=\n",       /* no rank              */
        "YWI 256\n",    /* no padding           */
        "YW=I 256\n",   /* padding inside       */
        "Y!I= 256\n",   /* not base64           */
        "YWI= -1\n",    /* negative             */
        "YWI= 300\n",   /* a gap                */
        "YWI= 99999999999999999999\n",
        "YWI= 255\n",   /* a rank twice         */
        "YQ== 256\n",   /* a token twice        */
    };
    for (size_t i = 0; i < sizeof bad_lines / sizeof *bad_lines; i++) {
        struct vocabulary v = byte_vocabulary();
        struct tokenizer *t = NULL;
        v.text = realloc(v.text, v.size + strlen(bad_lines[i]) + 1);
        assert_non_null(v.text);
        strcpy(v.text + v.size, bad_lines[i]);
        if (tokenizer_parse(v.text, v.size + strlen(bad_lines[i]), NULL, 0, "test", &t) != ST_EINPUT)
            fail_msg("accepted: %s", bad_lines[i]);
        assert_null(t);
        free(v.text);
    }
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_parse("", 0, NULL, 0, "test", &t), ST_EINPUT);
    assert_int_equal(tokenizer_parse("YQ== 0\n", 7, NULL, 0, "test", &t), ST_EINPUT); /* 255 bytes missing */
}

static void a_vocabulary_with_crlf_and_blank_lines_is_read(void **state)
{
    struct vocabulary v = byte_vocabulary();
    v.text = realloc(v.text, v.size + 64);
    assert_non_null(v.text);
    v.size += (size_t)sprintf(v.text + v.size, "\r\n\n  YWI=\t256 \r\n= 257\n");
    struct tokenizer *t = open_tokenizer(&v, NULL);
    expect_ids(t, "ab", false, (int32_t[]){256}, 1);
    tokenizer_close(t);
    free(v.text);
}

static void broken_special_tokens_are_refused(void **state)
{
    static const char *const bad[] = {"[]", "{", "{\"a\": \"b\"}", "{\"\": 1}", "{\"a\": 1, \"a\": 2}", "{\"a\": 1.5}", ""};
    struct vocabulary v = byte_vocabulary();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tokenizer *t = NULL;
        assert_int_equal(tokenizer_parse(v.text, v.size, bad[i], strlen(bad[i]), "test", &t), ST_EINPUT);
        assert_null(t);
    }
    free(v.text);
}

static void a_tokenizer_json_alone_is_named_as_unsupported(void **state)
{
    char dir[] = "/tmp/qsweep-tokenizer-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_open(dir, &t), ST_EIO);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(tokenizer_open(dir, &t), ST_EUNSUPPORTED);
    assert_non_null(strstr(status_last(), "--prompt-ids"));
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cut_equals_the_published_pieces),
        cmocka_unit_test(merging_with_a_heap_equals_the_definition),
        cmocka_unit_test(a_piece_of_2_to_the_18_equal_letters_merges_completely),
        cmocka_unit_test(without_merges_the_ids_are_the_bytes),
        cmocka_unit_test(a_chunk_border_cuts_a_word_where_the_original_does),
        cmocka_unit_test(special_tokens_count_only_when_asked),
        cmocka_unit_test(the_longest_special_token_wins_and_file_order_numbers_them),
        cmocka_unit_test(text_that_is_not_utf8_is_refused),
        cmocka_unit_test(a_broken_vocabulary_is_refused),
        cmocka_unit_test(a_vocabulary_with_crlf_and_blank_lines_is_read),
        cmocka_unit_test(broken_special_tokens_are_refused),
        cmocka_unit_test(a_tokenizer_json_alone_is_named_as_unsupported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
