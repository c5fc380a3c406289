/* The decoder on tiny random models against a naive second implementation: one case for every configuration switch, and
 * the rules of stopping, teacher forcing, batches and bytes. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/decode.h"
#include "tests/unit/tiny_model.h"

#include <stdio.h>

static const char *const backends[] = {"cpu_ref", "cpu"};

enum { PROMPT_COLUMNS = 9, FRAMES = 22 };

/* FP32 against double: logits are of size 10. */
static const double BOUND_LOGITS = 2e-4;

/* ---- one case a switch ---- */

struct variant {
    const char    *name;
    void         (*apply)(struct model_config *c);
    enum head_mode head;
    bool           s2, int8;
};

static void unchanged(struct model_config *c) {}
static void tied_head(struct model_config *c) { c->tie_word_embeddings = true; }
static void slow_qkv_bias(struct model_config *c) { c->slow.qkv_bias = true; }
static void slow_o_bias(struct model_config *c) { c->slow.o_bias = true; }
static void fast_biases(struct model_config *c) { c->fast.qkv_bias = c->fast.o_bias = true; }
static void no_slow_qk_norm(struct model_config *c) { c->slow.qk_norm = false; }
static void fast_qk_norm(struct model_config *c) { c->fast.qk_norm = true; }
static void no_sharing(struct model_config *c) { c->slow.n_kv_heads = 4, c->fast.n_kv_heads = 3; }
static void one_kv_head(struct model_config *c) { c->slow.n_kv_heads = 1; }
static void six_on_two(struct model_config *c) { c->slow.n_head = 6, c->slow.n_kv_heads = 2, c->fast.n_head = 6, c->fast.n_kv_heads = 3; }
static void narrow_fast(struct model_config *c) { c->fast.dim = 18; }
static void wide_fast(struct model_config *c) { c->fast.dim = 42; }
static void unscaled(struct model_config *c) { c->scale_codebook_embeddings = false; }
static void normed_fast_input(struct model_config *c) { c->norm_fastlayer_input = true; }
static void normed_and_projected(struct model_config *c) { c->norm_fastlayer_input = true, c->fast.dim = 30; }
static void one_codebook(struct model_config *c) { c->num_codebooks = 1; }
static void two_codebooks(struct model_config *c) { c->num_codebooks = 2; }
static void ten_codebooks(struct model_config *c) { c->num_codebooks = 10; }
static void large_codebooks(struct model_config *c) { c->codebook_size = 1100; }
static void small_codebooks(struct model_config *c) { c->codebook_size = 8; } /* semantic ids beyond it: code 0 clamps */
static void other_rope(struct model_config *c) { c->rope_base = 1000000, c->norm_eps = 1e-3f; }
static void one_layer(struct model_config *c) { c->slow.n_layer = c->fast.n_layer = 1; }

static const struct variant variants[] = {
    {"the base model", unchanged, HEAD_FULL, false, false},
    {"tied embeddings", tied_head, HEAD_FULL, false, false},
    {"bias on the slow qkv", slow_qkv_bias, HEAD_FULL, false, false},
    {"bias on the slow wo", slow_o_bias, HEAD_FULL, false, false},
    {"biases on the fast attention", fast_biases, HEAD_FULL, false, false},
    {"no qk-norm on the slow stack", no_slow_qk_norm, HEAD_FULL, false, false},
    {"qk-norm on the fast stack", fast_qk_norm, HEAD_FULL, false, false},
    {"as many kv heads as query heads", no_sharing, HEAD_FULL, false, false},
    {"one kv head", one_kv_head, HEAD_FULL, false, false},
    {"three query heads a kv head", six_on_two, HEAD_FULL, false, false},
    {"a narrower fast stack", narrow_fast, HEAD_FULL, false, false},
    {"a wider fast stack", wide_fast, HEAD_FULL, false, false},
    {"codebook embeddings not scaled", unscaled, HEAD_FULL, false, false},
    {"normed fast input", normed_fast_input, HEAD_FULL, false, false},
    {"normed and projected fast input", normed_and_projected, HEAD_FULL, false, false},
    {"one codebook", one_codebook, HEAD_FULL, false, false},
    {"two codebooks", two_codebooks, HEAD_FULL, false, false},
    {"ten codebooks", ten_codebooks, HEAD_FULL, false, false},
    {"1100 codes, S1: rows to 1024", large_codebooks, HEAD_FULL, false, false},
    {"1100 codes, S2: all rows", large_codebooks, HEAD_FULL, true, false},
    {"semantic ids beyond the codebook", small_codebooks, HEAD_SEMANTIC, false, false},
    {"another RoPE base and epsilon", other_rope, HEAD_FULL, false, false},
    {"one layer", one_layer, HEAD_FULL, false, false},
    {"the semantic head", unchanged, HEAD_SEMANTIC, false, false},
    {"the semantic head, tied", tied_head, HEAD_SEMANTIC, false, false},
    {"S2 rules on the full head", unchanged, HEAD_FULL, true, false},
    {"S2 rules on the semantic head", unchanged, HEAD_SEMANTIC, true, false},
    {"INT8 weights against their dequantized twin", slow_qkv_bias, HEAD_FULL, false, true},
    {"INT8 weights, tied and projected", narrow_fast, HEAD_SEMANTIC, true, true},
};

struct taps {
    struct decoder         *d;
    const struct naive_run *want;
    const char             *name;
    int                     codebook_size, calls;
};

static void compare(struct taps *t, const char *what, int frame, int codebook, int i, double got, double want)
{
    if (!(fabs(got - want) <= BOUND_LOGITS))
        fail_msg("%s: %s of frame %d, codebook %d, row %d is %.9g, the naive model has %.9g", t->name, what, frame, codebook, i, got,
                 want);
}

static void tap_logits(void *ctx, int sequence, int frame, int codebook, const float *logits, int n)
{
    struct taps *t = ctx;
    for (int i = 0; i < n; i++) {
        double want = codebook == 0 ? t->want->slow[frame][decoder_head_id(t->d, i)]
                                    : t->want->fast[((size_t)frame * TINY_BOOKS_MAX + (size_t)codebook) * (size_t)t->codebook_size + (size_t)i];
        if (want > -INFINITY) /* the full head computes ids that S2 masks */
            compare(t, "logit", frame, codebook, i, (double)logits[i], want);
    }
    t->calls++;
}

static void tap_hidden(void *ctx, int sequence, int frame, const float *hidden, int n)
{
    struct taps *t = ctx;
    for (int i = 0; i < n; i++)
        compare(t, "hidden state", frame, 0, i, (double)hidden[i], t->want->hidden[frame][i]);
}

/* Text, semantic columns, text; codes on text columns are zeros as in a real prompt. */
static void make_prompt(const struct model_config *c, uint64_t seed, int columns, int32_t *by_column, int32_t *by_row)
{
    const int width = 1 + c->num_codebooks;
    for (int t = 0; t < columns; t++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        bool semantic = t > 1 && t < 6;
        for (int row = 0; row < width; row++) {
            int32_t code = (int32_t)((seed >> (20 + row)) % (uint64_t)(c->codebook_size < 40 ? c->codebook_size : 40));
            int32_t v    = row == 0 ? (semantic ? c->semantic_begin_id + code : (int32_t)((seed >> 40) % 50)) : semantic ? code : 0;
            if (row == 1 && semantic)
                v = by_column[t * width] - c->semantic_begin_id;
            by_column[t * width + row] = by_row[row * columns + t] = v;
        }
    }
}

static struct backend *open_backend(const char *name, enum rounding rounding)
{
    struct backend              *be = NULL;
    const struct backend_options o  = {.rounding = rounding, .n_threads = 2};
    assert_int_equal(backend_open(name, &o, &be), ST_OK);
    return be;
}

static struct decode_options greedy(enum sampling_rules rules, float penalty)
{
    struct decode_options o = {.batch = 1, .max_seq_len = 64, .kv = KV_FP32, .engine = ENGINE_OPS};
    sampling_defaults(rules, &o.sampling);
    o.sampling.greedy             = true;
    o.sampling.repetition_penalty = penalty;
    return o;
}

static void run_variant(const struct variant *v, uint64_t seed)
{
    struct model_config c = tiny_config();
    v->apply(&c);
    struct tiny     *t = tiny_open(&c, v->int8, seed);
    const int        width = 1 + c.num_codebooks;
    int32_t          by_column[PROMPT_COLUMNS * (1 + TINY_BOOKS_MAX)], by_row[PROMPT_COLUMNS * (1 + TINY_BOOKS_MAX)];
    struct naive_run *want = calloc(1, sizeof *want);
    want->fast = calloc((size_t)TINY_FRAMES_MAX * TINY_BOOKS_MAX * (size_t)c.codebook_size, sizeof *want->fast);
    make_prompt(&c, seed, PROMPT_COLUMNS, by_column, by_row);
    const struct naive_rules rules = {.s2 = v->s2, .semantic_only = v->head == HEAD_SEMANTIC, .penalty = 1.3,
                                      .residual_rows = !v->s2 && c.codebook_size > 1024 ? 1024 : c.codebook_size};
    naive_decode(&t->w, by_column, PROMPT_COLUMNS, FRAMES, &rules, want);
    for (int b = 0; b < 2; b++) {
        struct backend *be   = open_backend(backends[b], ROUND_NONE);
        struct taps     taps = {.want = want, .name = v->name, .codebook_size = c.codebook_size};
        const struct decode_tap tap = {&taps, tap_logits, tap_hidden};
        struct decode_options   o   = greedy(v->s2 ? SAMPLING_S2 : SAMPLING_S1, 1.3f);
        struct prompt           p   = {.rows = width, .columns = PROMPT_COLUMNS, .values = by_row};
        int32_t                 got[FRAMES * (1 + TINY_BOOKS_MAX)];
        int                     done;
        o.head = v->head;
        o.tap  = &tap;
        assert_int_equal(decoder_open(be, &t->w, &o, &taps.d), ST_OK);
        assert_int_equal(decoder_head_rows(taps.d), v->head == HEAD_FULL ? TINY_VOCAB : c.semantic_end_id - c.semantic_begin_id + 2);
        assert_int_equal(decoder_prefill(taps.d, &p, NULL), ST_OK);
        assert_int_equal(decoder_run(taps.d, FRAMES, got, NULL, &done), ST_OK);
        if (done != want->n)
            fail_msg("%s, %s: %d frames, the naive model made %d", v->name, backends[b], done, want->n);
        assert_int_equal(taps.calls, done * c.num_codebooks);
        for (int k = 0; k < done; k++)
            for (int row = 0; row < width; row++)
                if (got[k * width + row] != want->frames[k][row])
                    fail_msg("%s, %s: frame %d row %d is %d, the naive model has %d", v->name, backends[b], k, row,
                             got[k * width + row], want->frames[k][row]);
        decoder_close(taps.d);
        backend_close(be);
    }
    free(want->fast);
    free(want);
    tiny_close(t);
}

static void every_switch_decodes_as_the_naive_model(void **unused)
{
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        run_variant(&variants[i], 1000 + i);
}

/* ---- a decoder on the base model, for the rules around the graph ---- */

struct rig {
    struct tiny    *t;
    struct backend *be;
    struct decoder *d;
    struct prompt   prompts[3];
    int32_t         values[3][40 * 5], columns[40 * 5];
};

enum { WIDTH = 5 };

static void rig_open(struct rig *r, const struct decode_options *o)
{
    const struct model_config c = tiny_config();
    r->t = tiny_open(&c, false, 5);
    r->be = open_backend("cpu_ref", ROUND_NONE);
    for (int s = 0; s < 3; s++) {
        make_prompt(&c, 70 + (uint64_t)s, 5 + 7 * s, r->columns, r->values[s]);
        r->prompts[s] = (struct prompt){.rows = WIDTH, .columns = 5 + 7 * s, .values = r->values[s]};
    }
    assert_int_equal(decoder_open(r->be, &r->t->w, o, &r->d), ST_OK);
    assert_int_equal(decoder_prefill(r->d, r->prompts, NULL), ST_OK);
}

static void rig_close(struct rig *r)
{
    decoder_close(r->d);
    assert_int_equal(atomic_load(&backend_memory(r->be)->total), 0); /* everything was given back */
    backend_close(r->be);
    tiny_close(r->t);
}

/* frames [n][WIDTH]: semantic frames, im_end where `ends` names the index. */
static void forced_frames(int32_t *frames, int n, int end_a, int end_b)
{
    for (int k = 0; k < n; k++) {
        bool end = k == end_a || k == end_b;
        frames[k * WIDTH] = end ? 50 : 60 + k;
        for (int row = 1; row < WIDTH; row++)
            frames[k * WIDTH + row] = end ? 0 : row == 1 ? k : (3 * k + row) % 40;
    }
}

static void im_end_stops_from_the_second_frame_on_and_its_frame_is_kept(void **unused)
{
    enum { N = 8 };
    int32_t               forced[3 * N * WIDTH], got[3 * N * WIDTH];
    struct decode_options o = greedy(SAMPLING_S1, 1.0f);
    struct rig            r;
    int                   done;
    o.batch    = 3;
    o.forced   = forced;
    o.n_forced = N;
    forced_frames(forced, N, 0, 4);                 /* im_end first: goes on; then stops at 4 */
    forced_frames(forced + N * WIDTH, N, 1, 3);     /* the second frame stops                 */
    forced_frames(forced + 2 * N * WIDTH, N, -1, -1);
    rig_open(&r, &o);
    assert_int_equal(decoder_run(r.d, N, got, NULL, &done), ST_OK);
    assert_int_equal(done, N);
    static const int length[3] = {5, 2, N};
    for (int s = 0; s < 3; s++) {
        assert_int_equal(decoder_length(r.d, s), length[s]);
        assert_int_equal(decoder_stopped(r.d, s), length[s] < N);
        for (int k = 0; k < N; k++)
            for (int row = 0; row < WIDTH; row++)
                assert_int_equal(got[(s * N + k) * WIDTH + row], k < length[s] ? forced[(s * N + k) * WIDTH + row] : -1);
    }
    rig_close(&r);
}

static void fixed_length_ignores_im_end(void **unused)
{
    enum { N = 6 };
    int32_t               forced[N * WIDTH], got[N * WIDTH];
    struct decode_options o = greedy(SAMPLING_S1, 1.0f);
    struct rig            r;
    int                   done;
    o.forced       = forced;
    o.n_forced     = N;
    o.fixed_length = true;
    forced_frames(forced, N, 1, 3);
    rig_open(&r, &o);
    assert_int_equal(decoder_run(r.d, N, got, NULL, &done), ST_OK);
    assert_int_equal(done, N);
    assert_false(decoder_stopped(r.d, 0));
    assert_memory_equal(got, forced, sizeof got);
    rig_close(&r);
}

static void a_full_cache_stops_a_sequence_at_max_seq_len_minus_prompt_frames(void **unused)
{
    enum { N = 30 };
    int32_t               got[3 * N * WIDTH];
    double                step_ms[N];
    struct decode_options o = greedy(SAMPLING_S1, 1.0f);
    struct rig            r;
    int                   done;
    o.batch        = 3; /* prompts of 5, 12 and 19 columns */
    o.max_seq_len  = 24;
    o.fixed_length = true;
    rig_open(&r, &o);
    assert_int_equal(decoder_run(r.d, N, got, step_ms, &done), ST_OK);
    assert_int_equal(done, 19);
    assert_int_equal(decoder_length(r.d, 0), 19);
    assert_int_equal(decoder_length(r.d, 1), 12);
    assert_int_equal(decoder_length(r.d, 2), 5);
    for (int k = 0; k < done; k++)
        assert_true(step_ms[k] > 0);
    assert_int_equal(decoder_run(r.d, 4, got, step_ms, &done), ST_OK);
    assert_int_equal(done, 0);
    assert_int_equal(decoder_step_bytes(r.d), 0);
    rig_close(&r);
}

static void a_second_prefill_starts_anew(void **unused)
{
    enum { N = 18 };
    int32_t               first[N * WIDTH], second[N * WIDTH];
    struct decode_options o = greedy(SAMPLING_S1, 1.3f);
    struct rig            r;
    int                   done;
    o.sampling.greedy = false;
    o.fixed_length    = true;
    rig_open(&r, &o);
    assert_int_equal(decoder_run(r.d, N, first, NULL, &done), ST_OK);
    assert_int_equal(decoder_prefill(r.d, &r.prompts[1], NULL), ST_OK);
    assert_int_equal(decoder_run(r.d, N, second, NULL, &done), ST_OK);
    assert_memory_not_equal(first, second, sizeof first);
    assert_int_equal(decoder_prefill(r.d, r.prompts, NULL), ST_OK);
    assert_int_equal(decoder_run(r.d, N, second, NULL, &done), ST_OK);
    assert_memory_equal(first, second, sizeof first);
    const uint32_t other = 9;
    assert_int_equal(decoder_prefill(r.d, r.prompts, &other), ST_OK);
    assert_int_equal(decoder_run(r.d, N, second, NULL, &done), ST_OK);
    assert_memory_not_equal(first, second, sizeof first); /* other noise */
    rig_close(&r);
}

/* ---- sampled frames ---- */

struct kept_logits {
    float slow[40][3][TINY_VOCAB], residual[40][3][4][40];
};

static void keep_logits(void *ctx, int sequence, int frame, int codebook, const float *logits, int n)
{
    struct kept_logits *k = ctx;
    memcpy(codebook == 0 ? k->slow[frame][sequence] : k->residual[frame][sequence][codebook], logits, (size_t)n * sizeof *logits);
}

/* What the sampler draws for one code from kept logits, with the history picked out of the frames by hand. */
static int32_t expected_draw(const struct sampling *s, const struct kept_logits *k, const int32_t frames[][WIDTH], int frame,
                             int sequence, uint32_t id, int codebook)
{
    const struct noise_key key = {id, (uint32_t)frame, (uint32_t)codebook, 0};
    const float           *logits = codebook == 0 ? k->slow[frame][sequence] : k->residual[frame][sequence][codebook];
    const int              loop = frame - 1, start = loop < 16 ? 0 : loop - 16; /* of the frames after the first */
    int32_t                history[32], ids[41];
    float                  some[41];
    double                 scratch[TINY_VOCAB];
    int                    n = 0;
    if (s->rules == SAMPLING_S2) {
        for (int i = 0; i < 41; i++)
            some[i] = logits[ids[i] = i < 40 ? 60 + i : 50];
        for (int back = 1; codebook == 0 && back <= 10 && loop - back >= 0; back++)
            if (frames[1 + loop - back][0] != 50)
                history[n++] = frames[1 + loop - back][0];
        return codebook == 0 ? ids[sampler_draw(s, some, 41, ids, history, n, key, scratch)]
                             : sampler_draw(s, logits, 40, NULL, NULL, 0, key, scratch);
    }
    for (int row = 0; codebook == 0 && frame > 0 && row < WIDTH; row++)
        history[n++] = start < loop ? frames[1 + start][row] : 0;
    for (int column = start; codebook > 0 && frame > 0 && column < start + 16; column++)
        history[n++] = column < loop ? frames[1 + column][1 + codebook] : 0;
    return sampler_draw(s, logits, codebook == 0 ? TINY_VOCAB : 40, NULL, history, n, key, scratch);
}

static void sampled_frames_are_the_draws_of_their_own_keys_and_histories(void **unused)
{
    enum { N = 30 };
    static struct kept_logits kept;
    static int32_t            got[3][N][WIDTH];
    const uint32_t            ids[3] = {4, 1000000, 2};
    const struct decode_tap   tap    = {&kept, keep_logits, NULL};
    int                       again  = 0;
    for (int rules = 0; rules < SAMPLING_COUNT; rules++) {
        struct decode_options o = greedy((enum sampling_rules)rules, 1.4f);
        struct rig            r;
        int                   done;
        o.sampling.greedy      = false;
        o.sampling.seed        = 77;
        o.sampling.temperature = 1.5f;
        o.sampling.top_k       = rules == SAMPLING_S2 ? 4 : 0;
        o.batch                = 3;
        o.fixed_length         = true;
        o.tap                  = &tap;
        o.sequence_ids         = ids;
        rig_open(&r, &o);
        assert_int_equal(decoder_run(r.d, N, &got[0][0][0], NULL, &done), ST_OK);
        assert_int_equal(done, N);
        for (int s = 0; s < 3; s++)
            for (int k = 0; k < N; k++) {
                for (int codebook = 0; codebook < 4; codebook++) {
                    int32_t want = expected_draw(&o.sampling, &kept, got[s], k, s, ids[s], codebook);
                    int32_t have = got[s][k][codebook == 0 ? 0 : 1 + codebook];
                    if (want != have)
                        fail_msg("rules %s, sequence %d, frame %d, codebook %d: %d, want %d", sampling_rules_name((enum sampling_rules)rules), s, k,
                                 codebook, have, want);
                }
                for (int back = 1; back <= 10 && k - back >= 1; back++)
                    again += got[s][k][0] == got[s][k - back][0];
            }
        rig_close(&r);
    }
    assert_true(again > 10); /* the windows had something to find */
}

static void a_prompt_longer_than_a_prefill_chunk_equals_the_naive_model(void **unused)
{
    enum { LONG = 300, N = 3 };
    struct model_config c = tiny_config();
    c.max_seq_len         = 400;
    struct tiny      *t   = tiny_open(&c, false, 8);
    struct naive_run *want = calloc(1, sizeof *want);
    int32_t          *by_column = calloc(LONG * WIDTH, sizeof *by_column), *by_row = calloc(LONG * WIDTH, sizeof *by_row);
    int32_t           got[N * WIDTH];
    int               done;
    want->fast = calloc((size_t)TINY_FRAMES_MAX * TINY_BOOKS_MAX * (size_t)c.codebook_size, sizeof *want->fast);
    make_prompt(&c, 4, LONG, by_column, by_row);
    const struct naive_rules rules = {.penalty = 1, .residual_rows = c.codebook_size};
    naive_decode(&t->w, by_column, LONG, N, &rules, want);
    struct taps             taps = {.want = want, .name = "a long prompt", .codebook_size = c.codebook_size};
    const struct decode_tap tap  = {&taps, tap_logits, tap_hidden};
    struct decode_options   o    = greedy(SAMPLING_S1, 1.0f);
    struct prompt           p    = {.rows = WIDTH, .columns = LONG, .values = by_row};
    struct backend         *be   = open_backend("cpu_ref", ROUND_NONE);
    o.max_seq_len = 0; /* the model's */
    o.tap         = &tap;
    assert_int_equal(decoder_open(be, &t->w, &o, &taps.d), ST_OK);
    assert_int_equal(decoder_prefill(taps.d, &p, NULL), ST_OK);
    assert_int_equal(decoder_run(taps.d, N, got, NULL, &done), ST_OK);
    assert_int_equal(done, N);
    for (int k = 0; k < N; k++)
        for (int row = 0; row < WIDTH; row++)
            assert_int_equal(got[k * WIDTH + row], want->frames[k][row]);
    decoder_close(taps.d);
    backend_close(be);
    free(want->fast);
    free(want);
    free(by_column);
    free(by_row);
    tiny_close(t);
}

/* Bytes of a step, counted by hand: every slow matrix and norm once, the head, three passes over the fast stack with its
 * head, and the cache of the positions so far. */
static void step_bytes_count_every_weight_once_a_pass_and_the_cache(void **unused)
{
    struct decode_options o = greedy(SAMPLING_S1, 1.0f);
    struct rig            r;
    int32_t               got[2 * WIDTH];
    int                   done;
    o.fixed_length = true;
    rig_open(&r, &o);
    const size_t slow_layer = (size_t)(64 * 24 + 24 * 32 + 3 * 40 * 24 + 2 * 24 + 2 * 8);
    const size_t fast_layer = (size_t)(30 * 24 + 24 * 18 + 3 * 28 * 24 + 2 * 24);
    const size_t weights    = 4 * (2 * slow_layer + 24 + 120 * 24 + 3 * (2 * fast_layer + 24 + 40 * 24));
    const size_t position   = 4 * 2 * 2 * 2 * 8; /* fp32, k and v, layers, heads, head_dim */
    assert_int_equal(decoder_step_bytes(r.d), weights + 5 * position);
    assert_int_equal(decoder_run(r.d, 2, got, NULL, &done), ST_OK);
    assert_int_equal(decoder_step_bytes(r.d), weights + 7 * position);
    assert_string_equal(decoder_engine(r.d), "ops");
    rig_close(&r);
}

static void prompts_and_options_that_do_not_fit_are_refused(void **unused)
{
    struct decode_options o = greedy(SAMPLING_S1, 1.0f), bad;
    struct rig            r;
    struct decoder       *d;
    o.max_seq_len = 12;
    rig_open(&r, &o);
    struct prompt p = r.prompts[1]; /* 12 columns: the cache has 12 positions and one must be left */
    int32_t       one[WIDTH] = {60, 0, 0, 0, 0}, got[WIDTH];
    int           done;
    assert_int_equal(decoder_prefill(r.d, &p, NULL), ST_EUSAGE);
    assert_int_equal(decoder_run(r.d, 1, got, NULL, &done), ST_EINTERNAL); /* nothing was prefilled */
    p = (struct prompt){.rows = WIDTH, .columns = 1, .values = one};
    assert_int_equal(decoder_prefill(r.d, &p, NULL), ST_OK);
    static const int32_t wrong[][2] = {{0, -1}, {0, TINY_VOCAB}, {1, -1}, {1, 40}, {4, 40}, {4, 2147483647}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int32_t keep     = one[wrong[i][0]];
        one[wrong[i][0]] = wrong[i][1];
        assert_int_equal(decoder_prefill(r.d, &p, NULL), ST_EINPUT);
        one[wrong[i][0]] = keep;
    }
    p.columns = 0;
    assert_int_equal(decoder_prefill(r.d, &p, NULL), ST_EUSAGE);
    p.columns = 1, p.rows = 4;
    assert_int_equal(decoder_prefill(r.d, &p, NULL), ST_EINPUT);

    bad = o, bad.batch = 0;
    assert_int_equal(decoder_open(r.be, &r.t->w, &bad, &d), ST_EUSAGE);
    bad = o, bad.max_seq_len = 101;
    assert_int_equal(decoder_open(r.be, &r.t->w, &bad, &d), ST_EUSAGE);
    bad = o, bad.engine = ENGINE_GRAPH;
    assert_int_equal(decoder_open(r.be, &r.t->w, &bad, &d), ST_EUNSUPPORTED);
    bad = o, bad.sampling.top_p = 0;
    assert_int_equal(decoder_open(r.be, &r.t->w, &bad, &d), ST_EUSAGE);
    rig_close(&r);
}

/* ---- the fused hooks, by a backend whose engine replays a list of frames ---- */

static int     fused_opened, fused_closed, fused_prefilled;
static int32_t replay[2][10][WIDTH];
static int     replayed;
static bool    fused_refuses;

static status_t fake_open(struct backend *be, const struct weights *w, const struct decode_options *options, struct fused **out)
{
    if (fused_refuses)
        return ST_EUNSUPPORTED;
    assert_non_null(options->sequence_ids);
    fused_opened++;
    *out = (struct fused *)(uintptr_t)&fused_opened;
    return ST_OK;
}

static void fake_close(struct fused *f)
{
    fused_closed++;
}

static status_t fake_prefill(struct fused *f, const struct prompt *prompts)
{
    fused_prefilled++;
    replayed = 0;
    return ST_OK;
}

static status_t fake_run(struct fused *f, int n, int32_t *frames, double *step_ms, int *n_done)
{
    for (int s = 0; s < 2; s++)
        memcpy(frames + s * n * WIDTH, replay[s][replayed], (size_t)n * sizeof replay[s][0]);
    replayed += n;
    *n_done = n;
    return ST_OK;
}

static size_t fake_bytes(const struct fused *f, int context)
{
    return (size_t)context * 1000;
}

static const char *fake_engine(const struct fused *f)
{
    return "persistent";
}

static void a_fused_engine_is_used_asked_and_closed_and_auto_falls_back_to_ops(void **unused)
{
    const struct model_config c  = tiny_config();
    struct tiny          *t  = tiny_open(&c, false, 5);
    struct backend       *be = open_backend("cpu_ref", ROUND_NONE);
    struct backend_ops    ops = *backend_ops_of(be);
    struct decode_options o   = greedy(SAMPLING_S1, 1.0f);
    struct decoder       *d;
    int32_t               one[WIDTH] = {60, 0, 0, 0, 0}, got[2 * 6 * WIDTH];
    const struct prompt   p[2] = {{WIDTH, 1, one}, {WIDTH, 1, one}};
    int                   done;
    ops.fused_open        = fake_open;
    ops.fused_close       = fake_close;
    ops.fused_prefill     = fake_prefill;
    ops.fused_run         = fake_run;
    ops.fused_frame_bytes = fake_bytes;
    ops.fused_engine      = fake_engine;
    const struct backend_ops *own = backend_ops_of(be);
    ((struct backend_base *)(void *)be)->ops = &ops;
    o.batch = 2;
    for (int engine = 0; engine < ENGINE_COUNT; engine++)
        for (int refuses = 0; refuses < 2; refuses++) {
            o.engine      = (enum engine_kind)engine;
            fused_refuses = refuses;
            fused_opened = fused_closed = fused_prefilled = 0;
            status_t st = decoder_open(be, &t->w, &o, &d);
            if (refuses && engine != ENGINE_AUTO && engine != ENGINE_OPS) {
                assert_int_equal(st, ST_EUNSUPPORTED);
                continue;
            }
            assert_int_equal(st, ST_OK);
            const bool fused = engine != ENGINE_OPS && !refuses;
            assert_string_equal(decoder_engine(d), fused ? "persistent" : "ops");
            assert_int_equal(fused_opened, fused);
            if (fused) {
                forced_frames(&replay[0][0][0], 10, 0, 4);
                forced_frames(&replay[1][0][0], 10, -1, -1);
                for (int k = 5; k < 10; k++)
                    for (int row = 0; row < WIDTH; row++)
                        replay[0][k][row] = -1;
                assert_int_equal(decoder_prefill(d, p, NULL), ST_OK);
                assert_int_equal(fused_prefilled, 1);
                assert_int_equal(decoder_run(d, 3, got, NULL, &done), ST_OK);
                assert_int_equal(decoder_length(d, 0), 3);
                assert_int_equal(decoder_step_bytes(d), 4000);
                assert_int_equal(decoder_run(d, 6, got, NULL, &done), ST_OK);
                assert_int_equal(decoder_length(d, 0), 5);
                assert_true(decoder_stopped(d, 0));
                assert_int_equal(decoder_length(d, 1), 9);
                assert_false(decoder_stopped(d, 1));
            }
            decoder_close(d);
            assert_int_equal(fused_closed, fused);
        }
    ((struct backend_base *)(void *)be)->ops = own;
    backend_close(be);
    tiny_close(t);
}

static void too_little_memory_is_out_of_memory_and_leaks_nothing(void **unused)
{
    const struct model_config c = tiny_config();
    struct tiny              *t = tiny_open(&c, false, 5);
    struct decode_options     o = greedy(SAMPLING_S1, 1.0f);
    int                       refused = 0;
    for (size_t limit = 1000; limit < 400000; limit += 7919) {
        const struct backend_options bo = {.rounding = ROUND_NONE, .memory_limit = limit};
        struct backend              *be;
        struct decoder              *d;
        assert_int_equal(backend_open("cpu_ref", &bo, &be), ST_OK);
        status_t st = decoder_open(be, &t->w, &o, &d);
        if (st == ST_OK)
            decoder_close(d);
        else
            refused++;
        assert_true(st == ST_OK || st == ST_EOOM);
        assert_int_equal(atomic_load(&backend_memory(be)->total), 0);
        backend_close(be);
    }
    assert_in_range(refused, 5, 49);
    tiny_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_switch_decodes_as_the_naive_model),
        cmocka_unit_test(im_end_stops_from_the_second_frame_on_and_its_frame_is_kept),
        cmocka_unit_test(fixed_length_ignores_im_end),
        cmocka_unit_test(a_full_cache_stops_a_sequence_at_max_seq_len_minus_prompt_frames),
        cmocka_unit_test(a_second_prefill_starts_anew),
        cmocka_unit_test(sampled_frames_are_the_draws_of_their_own_keys_and_histories),
        cmocka_unit_test(a_prompt_longer_than_a_prefill_chunk_equals_the_naive_model),
        cmocka_unit_test(step_bytes_count_every_weight_once_a_pass_and_the_cache),
        cmocka_unit_test(prompts_and_options_that_do_not_fit_are_refused),
        cmocka_unit_test(a_fused_engine_is_used_asked_and_closed_and_auto_falls_back_to_ops),
        cmocka_unit_test(too_little_memory_is_out_of_memory_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
