#include "model/sampler.h"

#include "model/sampler_math.h"

#include <string.h>

static const char *const rules_names[SAMPLING_COUNT] = {"s1", "s2"};

const char *sampling_rules_name(enum sampling_rules rules)
{
    return (int)rules >= 0 && rules < SAMPLING_COUNT ? rules_names[rules] : "?";
}

int sampling_rules_parse(const char *name)
{
    for (int i = 0; i < SAMPLING_COUNT; i++)
        if (strcmp(rules_names[i], name) == 0)
            return i;
    return -1;
}

/* S1: the original's request defaults 0.8 / 0.8 / 1.1; S2: 1.0 / 0.9 and top-k 30 (decode.md §7, §14). */
void sampling_defaults(enum sampling_rules rules, struct sampling *out)
{
    *out = (struct sampling){
        .rules = rules,
        .temperature = rules == SAMPLING_S2 ? 1.0f : 0.8f,
        .top_p = rules == SAMPLING_S2 ? 0.9f : 0.8f,
        .repetition_penalty = rules == SAMPLING_S2 ? 1.0f : 1.1f,
        .top_k = rules == SAMPLING_S2 ? 30 : 0,
        .history = HISTORY_FAITHFUL,
        .seed = 42,
    };
}

status_t sampling_check(const struct sampling *s)
{
    if ((int)s->rules < 0 || s->rules >= SAMPLING_COUNT)
        return FAIL(ST_EUSAGE, "sampling rules = %d, want s1 or s2", (int)s->rules);
    if (!(s->temperature > 0 && s->temperature < 2))
        return FAIL(ST_EUSAGE, "temperature = %g, want a number between 0 and 2, both excluded", (double)s->temperature);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return FAIL(ST_EUSAGE, "top_p = %g, want a number above 0 and at most 1", (double)s->top_p);
    if (!(s->repetition_penalty > 0 && s->repetition_penalty < 2))
        return FAIL(ST_EUSAGE, "repetition_penalty = %g, want a number between 0 and 2, both excluded",
                    (double)s->repetition_penalty);
    if (s->top_k < 0)
        return FAIL(ST_EUSAGE, "top_k = %d, want 0 (off) or more", s->top_k);
    if (s->history != HISTORY_FAITHFUL && s->history != HISTORY_FIXED)
        return FAIL(ST_EUSAGE, "history rule = %d, want faithful or fixed", (int)s->history);
    return ST_OK;
}

void noise_block(uint64_t seed, struct noise_key key, uint32_t block, uint32_t out[4])
{
    uint32_t counter[4] = {block, key.frame, key.sequence, key.codebook | key.draw << 16};
    sampler_philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32), out);
}

float noise_exp(uint64_t seed, struct noise_key key, uint32_t i)
{
    return sampler_exponential(sampler_noise_word(seed, key.sequence, key.frame, key.codebook, key.draw, i));
}

/* Index of token id, or -1. Head rows are consecutive ids but for the last, so the direct guess is nearly always right. */
static int index_of(int32_t id, const int32_t *ids, int n)
{
    if (!ids)
        return id >= 0 && id < n ? id : -1;
    int64_t guess = (int64_t)id - ids[0];
    if (guess >= 0 && guess < n && ids[guess] == id)
        return (int)guess;
    for (int i = n - 1; i >= 0; i--)
        if (ids[i] == id)
            return i;
    return -1;
}

static void penalize(float *z, const float *logits, int n, const int32_t *ids, const int32_t *history, int n_history,
                     float penalty)
{
    for (int h = 0; h < n_history; h++) {
        int i = index_of(history[h], ids, n);
        if (i >= 0) /* from the original value, so that duplicates do not compound */
            z[i] = sampler_clean(logits[i] < 0 ? SAMPLER_MUL(logits[i], penalty) : SAMPLER_DIV(logits[i], penalty));
    }
}

/* Steps 1 and 2: z becomes the cleaned, penalized logits; returns the index of the largest, lowest index on ties. */
static int prepare(const struct sampling *s, float *z, const float *logits, int n, const int32_t *ids,
                   const int32_t *history, int n_history)
{
    for (int i = 0; i < n; i++)
        z[i] = sampler_clean(logits[i]);
    if (s->rules == SAMPLING_S1)
        penalize(z, logits, n, ids, history, n_history, s->repetition_penalty);
    int best = 0;
    for (int i = 1; i < n; i++)
        if (z[i] > z[best])
            best = i;
    return best;
}

/* What step 4 keeps: all z above `key`, and the first `ties` (by index) of those equal to it. */
struct cut {
    uint32_t key;
    int      ties, kept;
};

/* Step 4 without a sort: a radix descent over the ordered keys. Each level sums count and mass of a bucket, walks the
 * buckets from the top while they fit whole, and opens the first that does not. O(n); the integer sums make it equal to
 * sorting, bit for bit. */
struct descent {
    const float *z;
    int          n, most;      /* most entries that may be kept                  */
    float        max, top_p;
    uint64_t     limit, used;  /* mass that may be kept, mass of what is kept    */
    int          kept;
    uint32_t     prefix;       /* upper bits of the opened bucket's keys         */
    uint64_t     bucket_mass;  /* of the opened bucket                           */
    int          bucket_count;
};

enum { RADIX_BUCKETS = 4096, COARSE_BUCKETS = 1 << 16, ODD_MAX = 64 };
static const uint32_t HAS_ODD = 1u << 31; /* a bucket's count: it also has entries that are no BF16 values */

static bool fits(struct descent *d, uint64_t mass, int count)
{
    if (mass > d->limit - d->used || count > d->most - d->kept)
        return false;
    d->used += mass;
    d->kept += count;
    return true;
}

static void open_bucket(struct descent *d, uint32_t bucket, int shift, uint64_t mass, int count)
{
    d->prefix |= bucket << shift;
    d->bucket_mass  = mass;
    d->bucket_count = count;
}

/* One level over bits [shift, shift + width) of the keys in the opened bucket (all keys when shift + width = 32). False
 * when every bucket fits whole. */
static bool descend(struct descent *d, int shift, int width)
{
    uint64_t mass[RADIX_BUCKETS], total = 0;
    int      count[RADIX_BUCKETS], buckets = 1 << width, above = shift + width;
    memset(mass, 0, (size_t)buckets * sizeof *mass);
    memset(count, 0, (size_t)buckets * sizeof *count);
    for (int i = 0; i < d->n; i++) {
        uint32_t key = sampler_key(d->z[i]);
        if (above < 32 && key >> above != d->prefix >> above)
            continue;
        uint32_t b = key >> shift & (uint32_t)(buckets - 1);
        mass[b] += sampler_mass(SAMPLER_SUB(d->z[i], d->max));
        count[b]++;
    }
    for (int b = 0; above == 32 && b < buckets; b++)
        total += mass[b];
    if (above == 32)
        d->limit = sampler_threshold(d->top_p, total);
    int b = buckets - 1;
    while (b >= 0 && fits(d, mass[b], count[b]))
        b--;
    if (b >= 0)
        open_bucket(d, (uint32_t)b, shift, mass[b], count[b]);
    return b >= 0;
}

/* The first level for many logits that are BF16 values but for a few (the penalized): all entries of one upper half-word
 * are equal, so one exponential per distinct value is enough. 155,776 logits: 1.05 ms a draw, by descend() alone 3.2 (one
 * 2.6 GHz core, best of 60; 4,097 logits take 0.045 ms). Returns 0 when every bucket fits whole, 1 when one was opened,
 * -1 when the logits are not of this kind. count: [COARSE_BUCKETS]. */
static int descend_bf16(struct descent *d, uint32_t *count)
{
    float    odd[ODD_MAX];
    int      n_odd = 0;
    uint64_t total = 0;
    memset(count, 0, COARSE_BUCKETS * sizeof *count);
    for (int i = 0; i < d->n; i++) {
        uint32_t bucket = sampler_key(d->z[i]) >> 16;
        if ((sampler_bits(d->z[i]) & 0xffff) == 0)
            count[bucket]++;
        else if (n_odd < ODD_MAX) {
            odd[n_odd++] = d->z[i];
            count[bucket] |= HAS_ODD;
        } else
            return -1;
    }
    for (int pass = 0; pass < 2; pass++) { /* the total first, then the walk */
        for (int b = COARSE_BUCKETS - 1; b >= 0; b--) {
            if (count[b] == 0)
                continue;
            uint64_t mass    = 0;
            int      entries = (int)(count[b] & ~HAS_ODD);
            if (entries > 0) {
                uint32_t upper = b & 0x8000 ? (uint32_t)b & 0x7fff : ~(uint32_t)b & 0xffff;
                mass = (uint64_t)entries * sampler_mass(SAMPLER_SUB(sampler_float(upper << 16), d->max));
            }
            for (int k = 0; k < n_odd && count[b] & HAS_ODD; k++)
                if (sampler_key(odd[k]) >> 16 == (uint32_t)b) {
                    mass += sampler_mass(SAMPLER_SUB(odd[k], d->max));
                    entries++;
                }
            if (pass == 0)
                total += mass;
            else if (!fits(d, mass, entries)) {
                open_bucket(d, (uint32_t)b, 16, mass, entries);
                return 1;
            }
        }
        d->limit = sampler_threshold(d->top_p, total);
    }
    return 0;
}

/* scratch: n floats. */
static struct cut find_cut(const float *z, int n, float max, float top_p, int top_k, void *scratch)
{
    struct descent   d          = {.z = z, .n = n, .max = max, .top_p = top_p, .most = top_k > 0 && top_k < n ? top_k : n};
    const struct cut everything = {.key = 0, .ties = n, .kept = n};
    int              coarse     = n >= COARSE_BUCKETS ? descend_bf16(&d, scratch) : -1;
    if (coarse == 0)
        return everything;
    if (coarse > 0) {
        descend(&d, 8, 8);
        descend(&d, 0, 8);
    } else {
        if (!descend(&d, 20, 12))
            return everything;
        descend(&d, 10, 10);
        descend(&d, 0, 10);
    }
    /* The bucket that is open now holds equal keys, which have equal masses: some of them may fit. */
    uint64_t each = d.bucket_mass / (uint64_t)d.bucket_count;
    uint64_t fit  = each ? (d.limit - d.used) / each : (uint64_t)d.bucket_count;
    int      ties = (int)(fit < (uint64_t)(d.most - d.kept) ? fit : (uint64_t)(d.most - d.kept));
    return d.kept + ties > 0 ? (struct cut){d.prefix, ties, d.kept + ties} : (struct cut){d.prefix, 1, 1};
}

/* Steps 3 to 5 on prepared z. */
static int draw(const float *z, int n, int best, const int32_t *ids, float temperature, float top_p, int top_k,
                uint64_t seed, struct noise_key key, void *scratch)
{
    struct cut cut = find_cut(z, n, z[best], top_p, top_k, scratch);
    if (cut.kept == 1)
        return best;
    float tau = temperature > 1e-5f ? temperature : 1e-5f, top = SAMPLER_DIV(z[best], tau), best_score = -1.0f;
    int   result = best, ties = cut.ties;
    for (int i = 0; i < n; i++) {
        uint32_t k = sampler_key(z[i]);
        if (k < cut.key || (k == cut.key && ties-- <= 0))
            continue;
        float e = sampler_exp(SAMPLER_SUB(SAMPLER_DIV(z[i], tau), top));
        if (e == 0.0f) /* cannot win: the best has e = 1 */
            continue;
        float score = SAMPLER_DIV(e, noise_exp(seed, key, (uint32_t)(ids ? ids[i] : i)));
        if (score > best_score) {
            best_score = score;
            result     = i;
        }
    }
    return result;
}

int sampler_draw(const struct sampling *s, const float *logits, int n, const int32_t *ids, const int32_t *history,
                 int n_history, struct noise_key key, void *scratch)
{
    float *z    = scratch;
    int    best = prepare(s, z, logits, n, ids, history, n_history);
    if (s->greedy || !(z[best] >= -FLT_MAX)) /* the second: no candidate is finite */
        return best;
    int result = draw(z, n, best, ids, s->temperature, s->top_p, s->top_k, s->seed, key, z + n);
    if (s->rules != SAMPLING_S2)
        return result;
    for (int h = 0; h < n_history; h++)
        if (history[h] == (ids ? ids[result] : result)) {
            key.draw = 1;
            return draw(z, n, best, ids, 1.0f, 0.9f, s->top_k, s->seed, key, z + n);
        }
    return result;
}

int sampler_nucleus(const struct sampling *s, const float *logits, int n, const int32_t *ids, const int32_t *history,
                    int n_history, void *scratch)
{
    float *z    = scratch;
    int    best = prepare(s, z, logits, n, ids, history, n_history);
    if (s->greedy || !(z[best] >= -FLT_MAX))
        return 1;
    return find_cut(z, n, z[best], s->top_p, s->top_k, z + n).kept;
}

void history_reset(struct history *h, int num_codebooks)
{
    memset(h, 0, sizeof *h);
    h->num_codebooks = num_codebooks;
}

void history_push(struct history *h, const int32_t *frame)
{
    memcpy(h->frames[h->n % SAMPLING_WINDOW], frame, (size_t)(1 + h->num_codebooks) * sizeof *frame);
    h->n++;
}

int history_ids(const struct history *h, enum history_rule rule, bool first, int codebook, int32_t *out)
{
    if (first)
        return 0;
    if (rule == HISTORY_FAITHFUL && codebook == 0) {
        /* The original indexes the window's first column where its first row was meant: the oldest frame, whole. Before
         * the window is full that column is loop frame 0, all zeros while there is none. */
        const int32_t *oldest = h->frames[h->n < SAMPLING_WINDOW ? 0 : h->n % SAMPLING_WINDOW];
        memcpy(out, oldest, (size_t)(1 + h->num_codebooks) * sizeof *out);
        return 1 + h->num_codebooks;
    }
    /* Unused slots are zero: the original penalizes code 0 until the window is full; `fixed` looks at real frames only. */
    int n = rule == HISTORY_FIXED && h->n < SAMPLING_WINDOW ? h->n : SAMPLING_WINDOW;
    for (int i = 0; i < n; i++)
        out[i] = h->frames[i][codebook == 0 ? 0 : 1 + codebook];
    return n;
}

int history_recent(const struct history *h, int semantic_begin, int semantic_end, int32_t *out)
{
    int n = 0;
    for (int back = 1; back <= RAS_WINDOW && back <= h->n; back++) {
        int32_t token = h->frames[(h->n - back) % SAMPLING_WINDOW][0];
        if (token >= semantic_begin && token <= semantic_end)
            out[n++] = token;
    }
    return n;
}
