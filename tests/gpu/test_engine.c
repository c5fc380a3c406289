/* The fused engine against the CPU and against itself: usage test_engine CHECKPOINT [FRAMES].
 *
 * Logits are compared teacher-forced along frames that the CPU drew, so that one early difference cannot hide the rest.
 * Draws are checked exactly: the canonical sampler on the host, given the logits the GPU used, must name every token. */
#include "tests/gpu/tap.h"

#include "backend/backend.h"
#include "model/decode.h"

#include <math.h>

enum { MAX_BATCH = 64, PROMPT = 90 };

/* Relative L2 distance of a row of logits from the CPU's. Both sides round activations to BF16 at the same places but
 * add in another order, so single roundings flip and travel; the reference's own BF16 rows are within 3e-2 of FP32. */
static const double BOUND_ROW    = 3e-2;
static const double BOUND_MEDIAN = 1.5e-2;
/* A greedy choice may differ only where the CPU's two best logits are closer than this share of their row's spread. */
static const double BOUND_MARGIN = 5e-2;

static struct checkpoint *checkpoint;
static int                n_frames = 12, width, codebooks;
static const char        *label;

struct setting {
    enum precision      precision;
    enum kv_format      kv;
    enum head_mode      head;
    enum sampling_rules rules;
    enum history_rule   history;
    bool                greedy;
    int                 batch, long_prompt;
    float               penalty, top_p;
};

/* What one run left: frames, and every row of logits in order of (frame, sequence, codebook). */
struct record {
    int32_t *frames; /* [batch][n_frames][width] */
    float   *rows;   /* [frame][sequence][codebook][row_size] */
    int     *row_n;  /* their lengths */
    size_t   row_size;
    int      batch, done, head_rows;
};

static void keep(void *ctx, int sequence, int frame, int codebook, const float *logits, int n)
{
    struct record *r  = ctx;
    const size_t   at = ((size_t)frame * (size_t)r->batch + (size_t)sequence) * (size_t)codebooks + (size_t)codebook;
    if (frame >= n_frames || (size_t)n > r->row_size) {
        tap_because("a tap saw frame %d with %d logits", frame, n);
        return;
    }
    memcpy(r->rows + at * r->row_size, logits, (size_t)n * sizeof *logits);
    r->row_n[at] = n;
}

static void record_free(struct record *r)
{
    free(r->frames);
    free(r->rows);
    free(r->row_n);
}

static struct prompt make_prompt(int sequence, bool long_one)
{
    const struct model_config *c = &checkpoint->config;
    struct prompt              p = {.rows = width, .columns = long_one ? 300 + 7 * sequence : PROMPT + 5 * (sequence % 7)};
    p.values = calloc((size_t)p.rows * (size_t)p.columns, sizeof *p.values);
    uint32_t x = 12345u + (uint32_t)sequence * 977u;
    for (int t = 0; t < p.columns; t++) {
        x = x * 1664525u + 1013904223u;
        if (x >> 31) { /* a semantic column */
            int code    = (int)(x % (uint32_t)(c->semantic_end_id - c->semantic_begin_id + 1));
            p.values[t] = c->semantic_begin_id + code;
            for (int row = 1; row < p.rows; row++)
                p.values[row * p.columns + t] = row == 1 ? code % c->codebook_size : (int)(x >> row) % (c->codebook_size < 1024 ? c->codebook_size : 1024);
        } else
            p.values[t] = (int)(x % 4000u) % c->vocab_size;
    }
    return p;
}

static struct decode_options options_of(const struct setting *s, const char *device, struct record *r, const struct decode_tap *tap)
{
    struct decode_options o = {.batch = s->batch, .max_seq_len = 512, .kv = s->kv, .head = s->head, .fixed_length = true,
                               .engine = strcmp(device, "cuda") == 0 ? ENGINE_GRAPH : ENGINE_OPS, .tap = tap};
    sampling_defaults(s->rules, &o.sampling);
    o.sampling.greedy  = s->greedy;
    o.sampling.history = s->history;
    o.sampling.seed    = 20240607;
    if (s->penalty > 0)
        o.sampling.repetition_penalty = s->penalty;
    if (s->top_p > 0)
        o.sampling.top_p = s->top_p;
    return o;
}

/* Decode on `device`; forced [batch][n_frames][width] or NULL; first_sequence numbers noise and prompts. */
static bool run(const char *device, const struct setting *s, const int32_t *forced, int first_sequence, struct record *r)
{
    struct backend         *be = NULL;
    struct weights         *w  = NULL;
    struct decoder         *d  = NULL;
    struct prompt           prompts[MAX_BATCH];
    uint32_t                ids[MAX_BATCH];
    const size_t            cells = (size_t)n_frames * (size_t)s->batch * (size_t)codebooks;
    const struct decode_tap tap = {.ctx = r, .logits = keep};
    bool                    good = false;
    *r          = (struct record){.batch = s->batch};
    r->row_size = (size_t)(s->head == HEAD_FULL ? checkpoint->config.vocab_size
                                                : checkpoint->config.semantic_end_id - checkpoint->config.semantic_begin_id + 2);
    if (r->row_size < (size_t)checkpoint->config.codebook_size)
        r->row_size = (size_t)checkpoint->config.codebook_size;
    r->frames = calloc((size_t)s->batch * (size_t)n_frames * (size_t)width, sizeof *r->frames);
    r->rows   = calloc(cells * r->row_size, sizeof *r->rows);
    r->row_n  = calloc(cells, sizeof *r->row_n);
    for (int i = 0; i < s->batch; i++) {
        prompts[i] = make_prompt(first_sequence + i, s->long_prompt);
        ids[i]     = (uint32_t)(first_sequence + i);
    }
    struct decode_options        o  = options_of(s, device, r, &tap);
    const struct backend_options bo = {.rounding = ROUND_BF16};
    o.forced       = forced;
    o.n_forced     = forced ? n_frames : 0;
    o.sequence_ids = ids;
    double step_ms[4096];
    if (backend_open(device, &bo, &be) == ST_OK && weights_open(checkpoint, s->precision, RECIPE_NONE, 0, &w) == ST_OK &&
        decoder_open(be, w, &o, &d) == ST_OK && decoder_prefill(d, prompts, ids) == ST_OK &&
        decoder_run(d, n_frames, r->frames, step_ms, &r->done) == ST_OK) {
        r->head_rows = decoder_head_rows(d);
        good         = r->done == n_frames;
        if (!good)
            tap_because("%s made %d of %d frames", device, r->done, n_frames);
    } else
        tap_because("%s: %s", device, status_last());
    decoder_close(d);
    weights_close(w);
    backend_close(be);
    for (int i = 0; i < s->batch; i++)
        free(prompts[i].values);
    return good;
}

static void name_of(const struct setting *s, char *out, size_t size)
{
    snprintf(out, size, "%s %s kv-%s %s %s b%d%s", label, precision_name(s->precision), kv_format_name(s->kv),
             head_mode_name(s->head), sampling_rules_name(s->rules), s->batch, s->long_prompt ? " long" : "");
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void logits_are_the_cpus(const struct setting *s)
{
    struct record cpu, gpu;
    char          name[160];
    name_of(s, name, sizeof name);
    double median = NAN, worst = 0;
    if (run("cpu", s, NULL, 0, &cpu) && run("cuda", s, cpu.frames, 0, &gpu)) {
        const size_t cells = (size_t)n_frames * (size_t)s->batch * (size_t)codebooks;
        double      *error = calloc(cells, sizeof *error);
        for (size_t i = 0; i < cells; i++) {
            double distance = 0, norm = 0;
            if (cpu.row_n[i] != gpu.row_n[i] || cpu.row_n[i] == 0)
                tap_because("row %zu has %d logits, the CPU's has %d", i, gpu.row_n[i], cpu.row_n[i]);
            for (int j = 0; j < cpu.row_n[i]; j++) {
                const double a = cpu.rows[i * cpu.row_size + (size_t)j], b = gpu.rows[i * cpu.row_size + (size_t)j];
                distance += (a - b) * (a - b);
                norm += a * a;
            }
            error[i] = sqrt(distance / norm);
            if (!(error[i] <= BOUND_ROW))
                tap_because("frame %zu sequence %zu codebook %zu: logits are %g from the CPU's, bound %g",
                            i / (size_t)codebooks / (size_t)s->batch, i / (size_t)codebooks % (size_t)s->batch,
                            i % (size_t)codebooks, error[i], BOUND_ROW);
            worst = error[i] > worst ? error[i] : worst;
        }
        qsort(error, cells, sizeof *error, by_value);
        median = error[cells / 2];
        if (!(median <= BOUND_MEDIAN))
            tap_because("median distance %g, bound %g", median, BOUND_MEDIAN);
        if (memcmp(cpu.frames, gpu.frames, (size_t)s->batch * (size_t)n_frames * (size_t)width * sizeof *cpu.frames) != 0)
            tap_because("forced frames came back changed");
        free(error);
    }
    tap_ok(1, "%s: teacher-forced logits are the CPU's (median %.1e, worst %.1e)", name, median, worst);
    record_free(&cpu);
    record_free(&gpu);
}

/* The first difference of a greedy run must stand where the CPU's own best two are nearly equal. */
static void greedy_codes_are_the_cpus(const struct setting *s)
{
    struct record cpu, gpu;
    char          name[160];
    int           equal = 0;
    name_of(s, name, sizeof name);
    if (run("cpu", s, NULL, 0, &cpu) && run("cuda", s, NULL, 0, &gpu))
        for (int k = 0; k < n_frames; k++, equal = k)
            for (int row = 0; row < width; row++) {
                if (row == 1 || cpu.frames[k * width + row] == gpu.frames[k * width + row])
                    continue;
                const size_t at = (size_t)k * (size_t)codebooks + (size_t)(row == 0 ? 0 : row - 1);
                const float *z  = cpu.rows + at * cpu.row_size;
                float        a = -INFINITY, b = -INFINITY, low = INFINITY;
                for (int j = 0; j < cpu.row_n[at]; j++) {
                    low = fminf(low, z[j]);
                    if (z[j] > a)
                        b = a, a = z[j];
                    else if (z[j] > b)
                        b = z[j];
                }
                if (a - b > BOUND_MARGIN * (a - low))
                    tap_because("frame %d row %d: %d, the CPU has %d with a margin of %g in a spread of %g", k, row,
                                gpu.frames[k * width + row], cpu.frames[k * width + row], (double)(a - b), (double)(a - low));
                goto out;
            }
out:
    tap_ok(1, "%s: greedy codes equal the CPU's until a tie (%d of %d frames)", name, equal, n_frames);
    record_free(&cpu);
    record_free(&gpu);
}

static void draws_are_the_canonical_ones(const struct setting *s)
{
    const struct model_config *c = &checkpoint->config;
    struct record              gpu;
    char                       name[160];
    int                        checked = 0;
    name_of(s, name, sizeof name);
    if (run("cuda", s, NULL, 3, &gpu)) {
        const struct decode_options o = options_of(s, "cuda", &gpu, NULL);
        const int semantic = c->semantic_end_id - c->semantic_begin_id + 1;
        int32_t  *ids = malloc((size_t)(semantic + 1) * sizeof *ids);
        float    *some = malloc((gpu.row_size + 1) * sizeof *some);
        void     *scratch = malloc((gpu.row_size + 1) * 8);
        for (int i = 0; i <= semantic; i++)
            ids[i] = i < semantic ? c->semantic_begin_id + i : c->im_end_id;
        for (int b = 0; b < s->batch; b++) {
            struct history h;
            history_reset(&h, codebooks);
            for (int k = 0; k < n_frames; k++) {
                const int32_t *frame = gpu.frames + ((size_t)b * (size_t)n_frames + (size_t)k) * (size_t)width;
                for (int book = 0; book < codebooks; book++) {
                    const size_t at = ((size_t)k * (size_t)s->batch + (size_t)b) * (size_t)codebooks + (size_t)book;
                    const float *z  = gpu.rows + at * gpu.row_size;
                    int          n = gpu.row_n[at], n_history = 0;
                    int32_t      list[SAMPLING_WINDOW + HISTORY_MAX_CODEBOOKS + 1];
                    const bool   mapped = book == 0 && (s->head == HEAD_SEMANTIC || s->rules == SAMPLING_S2);
                    if (mapped && s->head == HEAD_FULL) {
                        for (int i = 0; i <= semantic; i++)
                            some[i] = z[ids[i]];
                        z = some;
                        n = semantic + 1;
                    }
                    if (s->rules == SAMPLING_S1)
                        n_history = history_ids(&h, s->history, k == 0, book, list);
                    else if (book == 0)
                        n_history = history_recent(&h, c->semantic_begin_id, c->semantic_end_id, list);
                    const struct noise_key key = {.sequence = (uint32_t)(3 + b), .frame = (uint32_t)k, .codebook = (uint32_t)book};
                    const int i = sampler_draw(&o.sampling, z, n, mapped ? ids : NULL, list, n_history, key, scratch);
                    const int want = mapped ? ids[i] : i, got = frame[book == 0 ? 0 : 1 + book];
                    if (want != got)
                        tap_because("sequence %d frame %d codebook %d: drew %d, the canonical draw is %d", b, k, book, got, want);
                    checked++;
                }
                if (k > 0)
                    history_push(&h, frame);
            }
        }
        free(ids);
        free(some);
        free(scratch);
    }
    tap_ok(checked > 0, "%s%s: every draw is the canonical one for the GPU's logits (%d draws)", name,
           s->history == HISTORY_FIXED ? " fixed" : "", checked);
    record_free(&gpu);
}

static bool same(const struct record *a, const struct record *b, int sequence_a)
{
    for (int k = 0; k < n_frames; k++)
        for (int book = 0; book < codebooks; book++) {
            const size_t x = ((size_t)k * (size_t)a->batch + (size_t)sequence_a) * (size_t)codebooks + (size_t)book;
            const size_t y = (size_t)k * (size_t)b->batch * (size_t)codebooks + (size_t)book;
            if (a->row_n[x] != b->row_n[y] ||
                memcmp(a->rows + x * a->row_size, b->rows + y * b->row_size, (size_t)a->row_n[x] * sizeof(float)) != 0) {
                tap_because("frame %d codebook %d: logits differ", k, book);
                return false;
            }
        }
    return memcmp(a->frames + (size_t)sequence_a * (size_t)n_frames * (size_t)width, b->frames,
                  (size_t)n_frames * (size_t)width * sizeof *b->frames) == 0;
}

static void runs_repeat_bit_for_bit(const struct setting *s)
{
    struct record a, b;
    char          name[160];
    name_of(s, name, sizeof name);
    bool good = run("cuda", s, NULL, 0, &a) && run("cuda", s, NULL, 0, &b) && same(&a, &b, 0);
    tap_ok(good, "%s: two runs have the same logits and codes, bit for bit", name);
    record_free(&a);
    record_free(&b);
}

static void a_sequence_does_not_feel_its_batch(const struct setting *s, int which)
{
    struct record  many, one;
    struct setting alone = *s;
    char           name[160];
    name_of(s, name, sizeof name);
    alone.batch = 1;
    bool good   = run("cuda", s, NULL, 0, &many) && run("cuda", &alone, NULL, which, &one) && same(&many, &one, which);
    tap_ok(good, "%s: sequence %d has the logits and codes it has alone, bit for bit", name, which);
    record_free(&many);
    record_free(&one);
}

/* A limit one byte short of what opening took must fail as out of memory and name the bytes. */
static void a_memory_limit_is_kept(void)
{
    struct backend       *be = NULL;
    struct weights       *w = NULL;
    struct decoder       *d = NULL;
    struct decode_options o = {.batch = 1, .max_seq_len = 256, .kv = KV_BF16, .engine = ENGINE_GRAPH};
    struct backend_options bo = {.rounding = ROUND_BF16};
    bool                  good = false;
    sampling_defaults(SAMPLING_S1, &o.sampling);
    if (weights_open(checkpoint, PRECISION_BF16, RECIPE_NONE, 0, &w) == ST_OK) {
        size_t peak = 0;
        if (backend_open("cuda", &bo, &be) == ST_OK && decoder_open(be, w, &o, &d) == ST_OK)
            peak = atomic_load(&backend_memory(be)->total_peak);
        decoder_close(d);
        if (be && atomic_load(&backend_memory(be)->total) != 0)
            tap_because("%zu bytes are still held after closing", atomic_load(&backend_memory(be)->total));
        backend_close(be);
        bo.memory_limit = peak - 1;
        be = NULL, d = NULL;
        if (peak && backend_open("cuda", &bo, &be) == ST_OK)
            good = decoder_open(be, w, &o, &d) == ST_EOOM && strstr(status_last(), "missing");
        if (!good)
            tap_because("limit %zu: %s", peak - 1, status_last());
        backend_close(be);
    }
    weights_close(w);
    tap_ok(good, "%s: one byte less than needed is an out-of-memory error that names the missing bytes", label);
}

int main(int argc, char **argv)
{
    const char *slash = argc > 1 ? strrchr(argv[1], '/') : NULL;
    if (argc < 2) {
        fprintf(stderr, "usage: test_engine CHECKPOINT [FRAMES]\n");
        return 2;
    }
    label    = slash ? slash + 1 : argv[1];
    n_frames = argc > 2 ? atoi(argv[2]) : n_frames;
    const struct backend_options bo = {.rounding = ROUND_BF16};
    struct backend              *be = NULL;
    if (backend_open("cuda", &bo, &be) != ST_OK) {
        printf("ok 1 - engine # skip: no GPU\n1..1\n");
        return 0;
    }
    backend_close(be);
    if (checkpoint_open(argv[1], &checkpoint) != ST_OK) {
        printf("not ok 1 - %s opens\n", argv[1]);
        return 1;
    }
    codebooks = checkpoint->config.num_codebooks;
    width     = 1 + codebooks;
    const enum sampling_rules rules = checkpoint->config.family == FAMILY_S2 ? SAMPLING_S2 : SAMPLING_S1;
    const enum precision      P[2] = {PRECISION_BF16, PRECISION_INT8};
    const enum kv_format      K[2] = {KV_BF16, KV_INT8};
    for (int i = 0; i < 2; i++) {
        const struct setting base = {.precision = P[i], .kv = K[i], .head = i ? HEAD_SEMANTIC : HEAD_FULL, .rules = rules,
                                     .batch = 1};
        struct setting s = base;
        if (tap_wanted("logits")) {
            logits_are_the_cpus(&s);
            s.batch = 3, s.kv = K[!i];
            logits_are_the_cpus(&s);
            s = base, s.long_prompt = 1;
            logits_are_the_cpus(&s);
        }
        s = base, s.greedy = true, s.penalty = 1.0f;
        if (tap_wanted("greedy"))
            greedy_codes_are_the_cpus(&s);
        s = base;
        if (tap_wanted("draws")) {
            draws_are_the_canonical_ones(&s);
            s.batch = 2, s.head = i ? HEAD_FULL : HEAD_SEMANTIC, s.history = HISTORY_FIXED, s.penalty = 1.5f, s.top_p = 0.95f;
            draws_are_the_canonical_ones(&s);
            s.top_p = 1.0f, s.penalty = 0.7f;
            draws_are_the_canonical_ones(&s);
            s = base, s.rules = SAMPLING_S2;
            draws_are_the_canonical_ones(&s);
        }
        s = base;
        if (tap_wanted("repeat"))
            runs_repeat_bit_for_bit(&s);
        s.batch = 5;
        if (tap_wanted("batch")) {
            a_sequence_does_not_feel_its_batch(&s, 2);
            s.batch = 9, s.head = HEAD_SEMANTIC;
            a_sequence_does_not_feel_its_batch(&s, 8);
            s.batch = 33;
            a_sequence_does_not_feel_its_batch(&s, 32);
        }
    }
    if (tap_wanted("memory"))
        a_memory_limit_is_kept();
    checkpoint_close(checkpoint);
    return tap_done();
}
