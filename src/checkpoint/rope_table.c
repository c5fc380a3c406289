#include "checkpoint/rope_table.h"

#include "checkpoint/noise.h"

#include <assert.h>

enum { FRACTION = 60, ROOT_FRACTION = 48, MAX_PAIRS = 64 };

/* a·b of numbers with FRACTION fractional bits. */
static int64_t times(int64_t a, int64_t b)
{
    return (int64_t)(((__int128)a * b) >> FRACTION);
}

/* cos and sin of x in [0, 1] by their Taylor series; the terms fall below 2^−60 after the eleventh. */
static void cos_sin(int64_t x, int64_t *c, int64_t *s)
{
    int64_t term = (int64_t)1 << FRACTION;
    *c = *s = 0;
    for (int k = 0; k < 24; k++) {
        int64_t signed_term = k % 4 < 2 ? term : -term;
        *(k % 2 ? s : c) += signed_term;
        term = times(term, x) / (k + 1);
    }
}

/* 10000^(1/pairs) with ROOT_FRACTION fractional bits: one square root for each factor of two. */
static uint64_t root_of_base(int pairs)
{
    unsigned __int128 root = (unsigned __int128)10000 << ROOT_FRACTION;
    for (; pairs > 1; pairs /= 2)
        root = integer_sqrt(root << ROOT_FRACTION);
    return (uint64_t)root;
}

static void put_bf16(unsigned char *out, int64_t value)
{
    uint16_t bits = fixed_to_bf16(value, FRACTION);
    out[0]        = (unsigned char)bits;
    out[1]        = (unsigned char)(bits >> 8);
}

void rope_table_fill(int64_t positions, int pairs, void *out)
{
    assert(pairs >= 1 && pairs <= MAX_PAIRS && (pairs & (pairs - 1)) == 0);
    uint64_t root = root_of_base(pairs);
    int64_t  step_c[MAX_PAIRS], step_s[MAX_PAIRS], c[MAX_PAIRS], s[MAX_PAIRS];
    int64_t  frequency = (int64_t)1 << FRACTION;
    for (int i = 0; i < pairs; i++) {
        cos_sin(frequency, &step_c[i], &step_s[i]);
        c[i]      = (int64_t)1 << FRACTION;
        s[i]      = 0;
        frequency = (int64_t)(((__int128)frequency << ROOT_FRACTION) / root);
    }
    unsigned char *at = out;
    for (int64_t t = 0; t < positions; t++)
        for (int i = 0; i < pairs; i++, at += 4) {
            put_bf16(at, c[i]);
            put_bf16(at + 2, s[i]);
            int64_t next = times(c[i], step_c[i]) - times(s[i], step_s[i]);
            s[i]         = times(s[i], step_c[i]) + times(c[i], step_s[i]);
            c[i]         = next;
        }
}
