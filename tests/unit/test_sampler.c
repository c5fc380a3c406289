/* The sampler against a sorting twin, an FP64 twin, known answers and its own statistics. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/bf16.h"
#include "model/sampler.h"
#include "model/sampler_math.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FULL_VOCABULARY = 155776, SEMANTIC_BEGIN = 151658, SEMANTIC_ROWS = 4097, IM_END = 151647 };

static uint64_t state;

static uint32_t random_word(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static double uniform(void)
{
    return (random_word() + 0.5) / 4294967296.0;
}

static float normal(void)
{
    return (float)(sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()));
}

static struct sampling rules_s1(void)
{
    struct sampling s;
    sampling_defaults(SAMPLING_S1, &s);
    s.temperature        = 0.7f;
    s.repetition_penalty = 1.0f;
    return s;
}

/* ---- the sorting twin: steps 3 to 5 by a full sort ---- */

struct entry {
    float z;
    int   index;
};

static int descending(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->z != y->z)
        return x->z > y->z ? -1 : 1;
    return x->index - y->index;
}

/* Kept entries in order of rank; returns how many. */
static int sorted_nucleus(const float *logits, int n, float top_p, int top_k, struct entry *e)
{
    uint64_t total = 0, sum = 0;
    for (int i = 0; i < n; i++)
        e[i] = (struct entry){logits[i] + 0.0f, i};
    qsort(e, (size_t)n, sizeof *e, descending);
    for (int i = 0; i < n; i++)
        total += sampler_mass(e[i].z - e[0].z);
    int kept = 0;
    for (int i = 0; i < n; i++) {
        sum += sampler_mass(e[i].z - e[0].z);
        if (i > 0 && (sum > sampler_threshold(top_p, total) || (top_k > 0 && i >= top_k)))
            break;
        kept++;
        if (sum > sampler_threshold(top_p, total))
            break;
    }
    return kept;
}

static int sorted_draw(const struct sampling *s, const float *logits, int n, struct noise_key key, struct entry *e)
{
    int   kept = sorted_nucleus(logits, n, s->top_p, s->top_k, e), result = e[0].index;
    float best = -1, top = e[0].z / s->temperature;
    for (int k = 0; k < kept; k++) {
        float score = sampler_exp(e[k].z / s->temperature - top) / noise_exp(s->seed, key, (uint32_t)e[k].index);
        if (score > best || (score == best && e[k].index < result)) {
            best   = score;
            result = e[k].index;
        }
    }
    return result;
}

static void compare_with_sort(int n, int round)
{
    float        *z       = malloc((size_t)n * sizeof *z);
    void         *scratch = malloc((size_t)n * 8);
    struct entry *e       = malloc((size_t)n * sizeof *e);
    static const float top_ps[] = {1e-6f, 0.1f, 0.5f, 0.8f, 0.95f, 0.999f, 1.0f};
    static const int   top_ks[] = {0, 1, 2, 30, 100000};
    struct sampling s = rules_s1();
    s.top_p = top_ps[random_word() % 7];
    s.top_k = top_ks[random_word() % 5];
    s.seed  = random_word();
    float spread = (float[]){0.0f, 0.01f, 1.0f, 4.0f, 30.0f, 1e4f}[random_word() % 6];
    int   kind   = (int)(random_word() % 4);
    for (int i = 0; i < n; i++) {
        z[i] = spread * normal();
        if (kind == 1 && i % 2000 != 5) /* BF16 but for a few, as after a penalty */
            z[i] = bf16_round(z[i]);
        if (kind == 2)
            z[i] = (float)(int)(random_word() % 5) - 2; /* many ties */
        if (kind == 3 && random_word() % 3 == 0)
            z[i] = -INFINITY;
    }
    z[random_word() % (uint32_t)n] = 0.0f;
    struct noise_key key = {1, (uint32_t)round, 3, 0};
    int kept = sampler_nucleus(&s, z, n, NULL, NULL, 0, scratch), twin = sorted_nucleus(z, n, s.top_p, s.top_k, e);
    if (kept != twin)
        fail_msg("n %d kind %d spread %g top_p %g top_k %d: kept %d, the sort keeps %d", n, kind, (double)spread,
                 (double)s.top_p, s.top_k, kept, twin);
    int drawn = sampler_draw(&s, z, n, NULL, NULL, 0, key, scratch), expected = sorted_draw(&s, z, n, key, e);
    if (drawn != expected)
        fail_msg("n %d kind %d spread %g top_p %g top_k %d: drew %d, the sort draws %d", n, kind, (double)spread,
                 (double)s.top_p, s.top_k, drawn, expected);
    free(z);
    free(scratch);
    free(e);
}

static void selection_equals_a_full_sort(void **unused)
{
    state = 7;
    for (int round = 0; round < 3000; round++)
        compare_with_sort((int[]){1, 2, 3, 17, 100, 1024}[random_word() % 6], round);
    for (int round = 0; round < 40; round++)
        compare_with_sort(round % 2 ? 70000 : SEMANTIC_ROWS, round);
    compare_with_sort(FULL_VOCABULARY, 0);
}

/* The reference's rule in FP64: remove where the cumulative probability, itself included, exceeds p. The integer masses
 * may differ from it by one entry where the sum lies within 1e-6 of p. */
static void nucleus_equals_the_definition_in_double_precision(void **unused)
{
    enum { N = 5000 };
    static float        z[N];
    static struct entry e[N];
    static double       scratch[N];
    state = 11;
    for (int round = 0; round < 200; round++) {
        struct sampling s = rules_s1();
        s.top_p           = 0.05f + 0.9f * (float)uniform();
        for (int i = 0; i < N; i++) {
            z[i] = 3 * normal();
            e[i] = (struct entry){z[i], i};
        }
        qsort(e, N, sizeof *e, descending);
        double total = 0, sum = 0;
        for (int i = 0; i < N; i++)
            total += exp((double)e[i].z - (double)e[0].z);
        int low = 0, high = 0;
        for (int i = 0; i < N; i++) {
            sum += exp((double)e[i].z - (double)e[0].z) / total;
            low += sum <= (double)s.top_p - 1e-6;
            high += sum <= (double)s.top_p + 1e-6;
        }
        int kept = sampler_nucleus(&s, z, N, NULL, NULL, 0, scratch);
        assert_in_range(kept, low > 1 ? low : 1, high > 1 ? high : 1);
    }
}

static void the_entry_that_crosses_top_p_is_removed(void **unused)
{
    const float z[4] = {logf(0.5f), logf(0.3f), logf(0.15f), logf(0.05f)};
    double      scratch[4];
    struct sampling s = rules_s1();
    s.top_p = 0.79f;
    assert_int_equal(sampler_nucleus(&s, z, 4, NULL, NULL, 0, scratch), 1);
    s.top_p = 0.81f;
    assert_int_equal(sampler_nucleus(&s, z, 4, NULL, NULL, 0, scratch), 2);
    s.top_p = 0.2f; /* even the best crosses: it stays */
    assert_int_equal(sampler_nucleus(&s, z, 4, NULL, NULL, 0, scratch), 1);
    s.top_p = 1.0f;
    assert_int_equal(sampler_nucleus(&s, z, 4, NULL, NULL, 0, scratch), 4);
}

static void temperature_does_not_change_the_nucleus(void **unused)
{
    float  z[1024];
    double scratch[1024];
    state = 3;
    for (int i = 0; i < 1024; i++)
        z[i] = 2 * normal();
    struct sampling s = rules_s1();
    int             first = sampler_nucleus(&s, z, 1024, NULL, NULL, 0, scratch);
    s.temperature         = 1.9f;
    assert_int_equal(sampler_nucleus(&s, z, 1024, NULL, NULL, 0, scratch), first);
    assert_true(first > 1);
}

static void philox_gives_the_published_answers(void **unused)
{
    static const uint32_t in[3][6] = {
        {0, 0, 0, 0, 0, 0},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0},
    };
    static const uint32_t want[3][4] = { /* Random123, kat_vectors: philox4x32 10 */
        {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        sampler_philox(in[i], in[i][4], in[i][5], out);
        assert_memory_equal(out, want[i], sizeof out);
    }
}

static void noise_block_and_noise_of_a_candidate_agree(void **unused)
{
    struct noise_key key = {5, 6, 7, 1};
    for (uint32_t i = 0; i < 40; i++) {
        uint32_t block[4];
        noise_block(0x123456789abcdefull, key, i / 4, block);
        float direct = noise_exp(0x123456789abcdefull, key, i), from_block = sampler_exponential(block[i % 4]);
        assert_memory_equal(&direct, &from_block, sizeof direct);
    }
}

static void noise_depends_on_every_part_of_its_key(void **unused)
{
    struct noise_key key = {5, 6, 7, 0}, other;
    float            base = noise_exp(1, key, 9);
    assert_true(noise_exp(2, key, 9) != base);
    assert_true(noise_exp(1ull << 40 | 1, key, 9) != base);
    assert_true(noise_exp(1, key, 10) != base);
    for (int part = 0; part < 4; part++) {
        other = key;
        (part == 0 ? &other.sequence : part == 1 ? &other.frame : part == 2 ? &other.codebook : &other.draw)[0]++;
        assert_true(noise_exp(1, other, 9) != base);
    }
}

static void exponential_is_correct_at_every_magnitude_and_never_zero_or_infinite(void **unused)
{
    static const uint32_t edges[] = {0, 1, 2, 3, 0x7fffffff, 0x80000000, 0xb504f332, 0xb504f333, 0xb504f334, 0xfffffffe, 0xffffffff};
    state = 5;
    for (int i = 0; i < 200000; i++) {
        uint32_t word = i < 11 ? edges[i] : random_word() >> (i % 33 % 32);
        double   want = -log((word + 0.5) / 4294967296.0);
        float    got  = sampler_exponential(word);
        assert_true(got > 0 && isfinite(got));
        if (fabs(got - want) > 1e-7 * want)
            fail_msg("word %u: %.9g, want %.9g", word, (double)got, want);
    }
}

static void exp_is_within_2e_7_of_the_library_and_exact_at_zero(void **unused)
{
    assert_true(sampler_exp(0.0f) == 1.0f);
    assert_true(sampler_exp(-INFINITY) == 0.0f);
    assert_true(sampler_exp(-1e30f) == 0.0f);
    for (float d = 0; d > -87; d -= 1.7e-4f) {
        double want = exp((double)d), got = (double)sampler_exp(d);
        if (fabs(got - want) > 2e-7 * want)
            fail_msg("exp(%g) = %.9g, want %.9g", (double)d, got, want);
    }
}

/* Chi-square of `draws` against probabilities p [n]; the bound is the 1e-6 quantile (Wilson and Hilferty). */
static void assert_distribution(const int *count, const double *p, int n, int draws)
{
    double chi2 = 0;
    int    df   = -1;
    for (int i = 0; i < n; i++) {
        if (p[i] == 0) {
            assert_int_equal(count[i], 0);
            continue;
        }
        double expected = p[i] * draws;
        assert_true(expected > 5);
        chi2 += (count[i] - expected) * (count[i] - expected) / expected;
        df++;
    }
    double h = 2.0 / (9 * df), bound = df * pow(1 - h + 4.75 * sqrt(h), 3);
    if (chi2 > bound)
        fail_msg("chi-square %.1f with %d degrees of freedom, bound %.1f", chi2, df, bound);
}

static void draws_follow_the_tempered_nucleus(void **unused)
{
    enum { N = 40, DRAWS = 100000 };
    float           z[N];
    double          scratch[N], p[N] = {0}, total = 0;
    int             count[N] = {0};
    struct entry    e[N];
    struct sampling s = rules_s1();
    s.top_p           = 0.9f;
    s.seed            = 20240601;
    state             = 99;
    for (int i = 0; i < N; i++)
        z[i] = 1.2f * normal();
    int kept = sorted_nucleus(z, N, s.top_p, 0, e);
    for (int k = 0; k < kept; k++)
        total += p[e[k].index] = exp((double)e[k].z / 0.7);
    for (int i = 0; i < N; i++)
        p[i] /= total;
    for (int d = 0; d < DRAWS; d++)
        count[sampler_draw(&s, z, N, NULL, NULL, 0, (struct noise_key){(uint32_t)d % 7, (uint32_t)d / 7, 2, 0}, scratch)]++;
    assert_distribution(count, p, N, DRAWS);
}

/* S2: rank below top_k and cumulative ≤ p; a drawn id of the window is drawn again at temperature 1, top-p 0.9. */
static void s2_draws_follow_top_k_and_the_second_draw(void **unused)
{
    enum { N = 40, DRAWS = 100000, RECENT = 2 };
    float           z[N];
    double          scratch[N], first[N] = {0}, second[N] = {0}, p[N] = {0}, total = 0, total2 = 0;
    int             count[N] = {0};
    struct entry    e[N];
    struct sampling s;
    sampling_defaults(SAMPLING_S2, &s);
    assert_int_equal(s.top_k, 30);
    s.top_k       = 12;
    s.top_p       = 0.97f;
    s.temperature = 0.6f;
    state         = 123;
    for (int i = 0; i < N; i++)
        z[i] = 0.8f * normal();
    int kept = sorted_nucleus(z, N, s.top_p, s.top_k, e);
    assert_int_equal(kept, 12);
    int32_t recent[RECENT] = {e[0].index, e[3].index};
    for (int k = 0; k < kept; k++)
        total += first[e[k].index] = exp((double)e[k].z / 0.6);
    kept = sorted_nucleus(z, N, 0.9f, s.top_k, e);
    for (int k = 0; k < kept; k++)
        total2 += second[e[k].index] = exp((double)e[k].z);
    double again = (first[recent[0]] + first[recent[1]]) / total;
    for (int i = 0; i < N; i++)
        p[i] = (i == recent[0] || i == recent[1] ? 0 : first[i] / total) + again * second[i] / total2;
    for (int d = 0; d < DRAWS; d++)
        count[sampler_draw(&s, z, N, NULL, recent, RECENT, (struct noise_key){0, (uint32_t)d, 0, 0}, scratch)]++;
    assert_distribution(count, p, N, DRAWS);
}

static void penalty_applies_once_per_distinct_id_and_by_sign(void **unused)
{
    const float     z[4] = {2.0f, 1.9f, -1.0f, -1.1f};
    double          scratch[4];
    struct sampling s = rules_s1();
    s.greedy             = true;
    s.repetition_penalty = 1.2f;
    const struct noise_key key = {0, 0, 0, 0};
    const int32_t twice[] = {0, 0, 0, 0}, outside[] = {-1, 4, 1 << 30, 2147483647};
    assert_int_equal(sampler_draw(&s, z, 4, NULL, NULL, 0, key, scratch), 0);
    assert_int_equal(sampler_draw(&s, z, 4, NULL, outside, 4, key, scratch), 0);
    assert_int_equal(sampler_draw(&s, z, 4, NULL, twice, 4, key, scratch), 1); /* 2/1.2 = 1.67 < 1.9 */
    const float   one_step[4] = {2.0f, 1.5f, -1.0f, -1.1f};
    assert_int_equal(sampler_draw(&s, one_step, 4, NULL, twice, 4, key, scratch), 0); /* 1.67, not 2/1.2⁴ = 0.96 */
    const float   negative[2] = {-1.0f, -1.1f};
    const int32_t zero[]      = {0};
    assert_int_equal(sampler_draw(&s, negative, 2, NULL, zero, 1, key, scratch), 1); /* −1·1.2 = −1.2 */
    struct sampling s2 = s;
    s2.rules = SAMPLING_S2; /* ignores the penalty */
    assert_int_equal(sampler_draw(&s2, z, 4, NULL, twice, 4, key, scratch), 0);
}

static void full_and_semantic_heads_draw_alike(void **unused)
{
    float   *full = malloc(FULL_VOCABULARY * sizeof *full), some[SEMANTIC_ROWS];
    int32_t *ids  = malloc(SEMANTIC_ROWS * sizeof *ids);
    void    *scratch = malloc(FULL_VOCABULARY * 8);
    struct sampling s = rules_s1();
    s.repetition_penalty = 1.1f;
    state = 17;
    for (int i = 0; i < FULL_VOCABULARY; i++)
        full[i] = -60;
    for (int i = 0; i < SEMANTIC_ROWS; i++) {
        ids[i]       = i < SEMANTIC_ROWS - 1 ? SEMANTIC_BEGIN + i : IM_END;
        some[i]      = 5 * normal();
        full[ids[i]] = some[i];
    }
    int ends = 0;
    some[SEMANTIC_ROWS - 1] = full[IM_END] = 19;
    for (uint32_t frame = 0; frame < 40; frame++) {
        struct noise_key key     = {0, frame, 0, 0};
        int32_t          history[] = {SEMANTIC_BEGIN + (int32_t)frame, IM_END, 5};
        int a = sampler_draw(&s, full, FULL_VOCABULARY, NULL, history, 3, key, scratch);
        int b = ids[sampler_draw(&s, some, SEMANTIC_ROWS, ids, history, 3, key, scratch)];
        assert_int_equal(a, b);
        ends += a == IM_END;
    }
    assert_in_range(ends, 1, 39);
    free(full);
    free(ids);
    free(scratch);
}

static void logits_that_are_not_numbers_never_win(void **unused)
{
    double          scratch[5];
    struct sampling s   = rules_s1();
    const float     z[] = {NAN, -INFINITY, 1.0f, -NAN, 0.5f}, nothing[] = {NAN, -INFINITY, NAN};
    s.top_p = 1.0f;
    for (uint32_t frame = 0; frame < 200; frame++) {
        int i = sampler_draw(&s, z, 5, NULL, NULL, 0, (struct noise_key){0, frame, 0, 0}, scratch);
        assert_true(i == 2 || i == 4);
    }
    assert_int_equal(sampler_draw(&s, nothing, 3, NULL, NULL, 0, (struct noise_key){0, 0, 0, 0}, scratch), 0);
    const float huge[] = {1.0f, INFINITY, FLT_MAX};
    assert_int_equal(sampler_draw(&s, huge, 3, NULL, NULL, 0, (struct noise_key){0, 0, 0, 0}, scratch) > 0, 1);
    s.greedy = true;
    assert_int_equal(sampler_draw(&s, z, 5, NULL, NULL, 0, (struct noise_key){0, 0, 0, 0}, scratch), 2);
}

static void greedy_takes_the_lowest_index_of_equals(void **unused)
{
    double          scratch[4];
    struct sampling s = rules_s1();
    s.greedy          = true;
    const float z[]   = {-0.0f, 3, 3, 3};
    assert_int_equal(sampler_draw(&s, z, 4, NULL, NULL, 0, (struct noise_key){0, 0, 0, 0}, scratch), 1);
}

/* The reference as decode.md §7 tells it: an (1 + codebooks) × 8192 matrix of zeros, loop frames appended, and a window. */
static int reference_history(const int32_t frames[][4], int i, int codebook, int32_t *out)
{
    int start = i < 16 ? 0 : i - 16, n = 0;
    if (codebook == 0) {
        for (int row = 0; row < 4; row++)
            out[n++] = start < i ? frames[start][row] : 0;
        return n;
    }
    for (int column = start; column < start + 16; column++)
        out[n++] = column < i ? frames[column][1 + codebook] : 0;
    return n;
}

static int ascending(const void *a, const void *b)
{
    return (*(const int32_t *)a > *(const int32_t *)b) - (*(const int32_t *)a < *(const int32_t *)b);
}

static void history_is_the_references_window(void **unused)
{
    int32_t        frames[50][4], want[64], got[64];
    struct history h;
    history_reset(&h, 3);
    assert_int_equal(history_ids(&h, HISTORY_FAITHFUL, true, 0, got), 0);
    assert_int_equal(history_ids(&h, HISTORY_FAITHFUL, true, 1, got), 0);
    for (int i = 0; i < 50; i++) {
        for (int codebook = 0; codebook < 3; codebook++) {
            int n = reference_history(frames, i, codebook, want);
            assert_int_equal(history_ids(&h, HISTORY_FAITHFUL, false, codebook, got), n);
            qsort(want, (size_t)n, sizeof *want, ascending);
            qsort(got, (size_t)n, sizeof *got, ascending);
            assert_memory_equal(got, want, (size_t)n * sizeof *want);
        }
        int n = history_ids(&h, HISTORY_FIXED, false, 0, got);
        assert_int_equal(n, i < 16 ? i : 16);
        for (int k = 0; k < n; k++) {
            int found = 0;
            for (int back = 1; back <= n; back++)
                found += frames[i - back][0] == got[k];
            assert_int_equal(found, 1);
        }
        for (int row = 0; row < 4; row++)
            frames[i][row] = 1000 * row + i;
        history_push(&h, frames[i]);
    }
}

static void recent_history_holds_the_last_ten_semantic_tokens(void **unused)
{
    struct history h;
    int32_t        got[RAS_WINDOW];
    history_reset(&h, 1);
    for (int32_t i = 0; i < 40; i++) {
        int32_t frame[2] = {100 + i, 0};
        if (i == 35)
            frame[0] = 7; /* not semantic */
        history_push(&h, frame);
    }
    assert_int_equal(history_recent(&h, 100, 200, got), 9);
    assert_int_equal(got[0], 139);
    assert_int_equal(got[8], 130);
    history_reset(&h, 1);
    assert_int_equal(history_recent(&h, 0, 200, got), 0);
}

static void parameters_outside_their_ranges_are_refused(void **unused)
{
    struct sampling s = rules_s1(), bad;
    assert_int_equal(sampling_check(&s), ST_OK);
    const float wrong[] = {0.0f, -1.0f, 2.0f, NAN, INFINITY};
    for (int i = 0; i < 5; i++) {
        bad = s, bad.temperature = wrong[i];
        assert_int_equal(sampling_check(&bad), ST_EUSAGE);
        bad = s, bad.top_p = wrong[i];
        assert_int_equal(sampling_check(&bad), ST_EUSAGE);
        bad = s, bad.repetition_penalty = wrong[i];
        assert_int_equal(sampling_check(&bad), ST_EUSAGE);
    }
    bad = s, bad.top_k = -1;
    assert_int_equal(sampling_check(&bad), ST_EUSAGE);
    assert_int_equal(sampling_rules_parse("s2"), SAMPLING_S2);
    assert_int_equal(sampling_rules_parse("s3"), -1);
    assert_string_equal(sampling_rules_name(SAMPLING_S1), "s1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(selection_equals_a_full_sort),
        cmocka_unit_test(nucleus_equals_the_definition_in_double_precision),
        cmocka_unit_test(the_entry_that_crosses_top_p_is_removed),
        cmocka_unit_test(temperature_does_not_change_the_nucleus),
        cmocka_unit_test(philox_gives_the_published_answers),
        cmocka_unit_test(noise_block_and_noise_of_a_candidate_agree),
        cmocka_unit_test(noise_depends_on_every_part_of_its_key),
        cmocka_unit_test(exponential_is_correct_at_every_magnitude_and_never_zero_or_infinite),
        cmocka_unit_test(exp_is_within_2e_7_of_the_library_and_exact_at_zero),
        cmocka_unit_test(draws_follow_the_tempered_nucleus),
        cmocka_unit_test(s2_draws_follow_top_k_and_the_second_draw),
        cmocka_unit_test(penalty_applies_once_per_distinct_id_and_by_sign),
        cmocka_unit_test(full_and_semantic_heads_draw_alike),
        cmocka_unit_test(logits_that_are_not_numbers_never_win),
        cmocka_unit_test(greedy_takes_the_lowest_index_of_equals),
        cmocka_unit_test(history_is_the_references_window),
        cmocka_unit_test(recent_history_holds_the_last_ten_semantic_tokens),
        cmocka_unit_test(parameters_outside_their_ranges_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
