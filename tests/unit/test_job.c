#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "sweep/job.h"
#include "sweep/sweep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct job *parse_set(const char *yaml, const char *const *set, int n_set)
{
    struct job *j;
    if (job_parse(yaml, strlen(yaml), "job.yaml", set, n_set, NULL, &j) != ST_OK)
        fail_msg("refused: %s", yaml);
    return j;
}

static struct job *parse(const char *yaml)
{
    return parse_set(yaml, NULL, 0);
}

/* Values of one axis of the first block, as text: "1 2 4". */
static void values_of(const struct job *j, const char *name, char *out, size_t size)
{
    const struct block *b = &job_sweep(j)->blocks[0];
    out[0]                = '\0';
    for (int i = 0; i < b->n_axes; i++)
        for (int k = 0; b->axes[i].field == axis_find(name) && k < b->axes[i].n; k++) {
            char text[FIELD_TEXT_MAX];
            field_format(&cell_fields[b->axes[i].field], b->axes[i].values[k], text);
            snprintf(out + strlen(out), size - strlen(out), "%s%s", k ? " " : "", text);
        }
}

static void a_job_of_one_line_has_the_reference_s_workload(void **state)
{
    struct job               *j = parse("model: checkpoints/x\n");
    const struct cell        *c = &job_sweep(j)->base;
    const struct job_options *o = job_options(j);
    const struct text_set    *t = &job_sweep(j)->text_sets[job_sweep(j)->base_texts];
    int                       n;
    assert_string_equal(job_models(j, &n)[0], "checkpoints/x");
    assert_int_equal(n, 1);
    assert_int_equal(c->workload.samples, 10);
    assert_int_equal(c->workload.warmup, 3);
    assert_int_equal(c->workload.processes, 1);
    assert_int_equal(c->workload.max_new_tokens, 1024);
    assert_true(c->sampling.temperature == 0.7f && c->sampling.top_p == 0.8f);
    assert_true(c->sampling.repetition_penalty == 1.1f);
    assert_int_equal(c->sampling.seed, 42);
    assert_int_equal(o->seed, 42);
    assert_int_equal(o->share, SHARE_AUTO);
    assert_int_equal(o->order, ORDER_INTERLEAVED);
    assert_int_equal(o->schedule, SCHEDULE_STATIC);
    assert_false(o->parallel);
    assert_string_equal(o->output, "results/job");
    assert_int_equal(t->n, 4);
    assert_int_equal(strlen(t->texts[0]), 51);
    assert_int_equal(strlen(t->texts[1]), 138);
    assert_int_equal(strlen(t->texts[2]), 359);
    assert_non_null(strstr(t->texts[3], "阳光明媚。I hope"));
    assert_string_equal(job_text(j), "model: checkpoints/x\n");
    job_close(j);
}

static void every_key_reaches_its_value(void **state)
{
    struct job *j = parse("model: m\n"
                          "precision: int8\n"
                          "kv: int8\n"
                          "batch: 3\n"
                          "context: 64\n"
                          "max_seq_len: 8192\n"
                          "head: semantic\n"
                          "engine: ops\n"
                          "codec: fp32\n"
                          "sampling: s2\n"
                          "device: cuda\n"
                          "seed: 7\n"
                          "memory_limit: 8GB\n"
                          "output: out/here\n"
                          "order: random\n"
                          "schedule: dynamic\n"
                          "parallel: yes\n"
                          "deadline: 90.5\n"
                          "audio: keep\n"
                          "weights: {share: shard, recipe: legacy}\n"
                          "workload:\n"
                          "  samples: 2\n"
                          "  warmup: 1\n"
                          "  processes: 2\n"
                          "  length: fixed\n"
                          "  max_new_tokens: 24\n"
                          "  texts: [one, \"two\"]\n"
                          "  temperature: 0.5\n"
                          "  top_p: 0.9\n"
                          "  top_k: 12\n"
                          "  repetition_penalty: 1.3\n"
                          "  history: fixed\n"
                          "  control_tokens: true\n"
                          "  greedy: on\n"
                          "  stop: {rel_ci: 0.02, min: 5, max: 50, seconds: 60}\n");
    const struct cell        *c = &job_sweep(j)->base;
    const struct job_options *o = job_options(j);
    const struct text_set    *t = &job_sweep(j)->text_sets[job_sweep(j)->base_texts];
    assert_int_equal(c->precision, PRECISION_INT8);
    assert_int_equal(c->kv, KV_INT8);
    assert_int_equal(c->batch, 3);
    assert_int_equal(c->context, 64);
    assert_int_equal(c->max_seq_len, 8192);
    assert_int_equal(c->head, HEAD_SEMANTIC);
    assert_int_equal(c->engine, ENGINE_OPS);
    assert_int_equal(c->codec, CODEC_FP32);
    assert_int_equal(c->sampling.rules, SAMPLING_S2);
    assert_int_equal(c->device_class, DEVICE_CUDA);
    assert_int_equal(c->sampling.seed, 7);
    assert_int_equal(o->seed, 7);
    assert_int_equal(c->memory_limit, 8000000000);
    assert_string_equal(o->output, "out/here");
    assert_int_equal(o->order, ORDER_RANDOM);
    assert_int_equal(o->schedule, SCHEDULE_DYNAMIC);
    assert_true(o->parallel);
    assert_true(c->deadline_s == 90.5);
    assert_true(c->keep_audio);
    assert_int_equal(o->share, SHARE_SHARD);
    assert_int_equal(c->recipe, RECIPE_LEGACY);
    assert_int_equal(c->workload.samples, 2);
    assert_int_equal(c->workload.warmup, 1);
    assert_int_equal(c->workload.processes, 2);
    assert_int_equal(c->workload.length, LENGTH_FIXED);
    assert_int_equal(c->workload.max_new_tokens, 24);
    assert_int_equal(t->n, 2);
    assert_string_equal(t->texts[1], "two");
    assert_true(c->sampling.temperature == 0.5f && c->sampling.top_p == 0.9f);
    assert_true(c->sampling.repetition_penalty == 1.3f);
    assert_int_equal(c->sampling.top_k, 12);
    assert_int_equal(c->sampling.history, HISTORY_FIXED);
    assert_true(c->workload.control_tokens && c->sampling.greedy);
    assert_true(c->workload.stop.rel_ci == 0.02f && c->workload.stop.min == 5 && c->workload.stop.max == 50);
    job_close(j);
}

static void lists_and_ranges_expand_to_their_values(void **state)
{
    static const struct {
        const char *axis, *written, *values;
    } cases[] = {
        {"batch", "4", "4"},
        {"batch", "[1, 2, 16]", "1 2 16"},
        {"batch", "1..64*2", "1 2 4 8 16 32 64"},
        {"batch", "1..63*2", "1 2 4 8 16 32"},
        {"batch", "1..10+3", "1 4 7 10"},
        {"batch", "1..11+3", "1 4 7 10"},
        {"batch", "1..4", "1 2 3 4"},
        {"batch", "7..7", "7"},
        {"batch", "[1, 4..8+2, 512..1024*2]", "1 4 6 8 512 1024"},
        {"context", "0..200+100", "0 100 200"},
        {"temperature", "0.1..0.9+0.2", "0.1 0.3 0.5 0.7 0.9"},
        {"temperature", "0.1..1.6*2", "0.1 0.2 0.4 0.8 1.6"},
        {"memory_limit", "8GB..32GB*2", "8000000000 16000000000 32000000000"},
        {"memory_limit", "8GB..12GB+2GB", "8000000000 10000000000 12000000000"},
        {"seed", "9223372036854775805..9223372036854775807",
         "9223372036854775805 9223372036854775806 9223372036854775807"},
        {"greedy", "[yes, no]", "true false"},
        {"precision", "[bf16, int8]", "bf16 int8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char yaml[256], values[512];
        snprintf(yaml, sizeof yaml, "model: m\nsweep: {%s: %s}\n", cases[i].axis, cases[i].written);
        struct job *j = parse(yaml);
        values_of(j, cases[i].axis, values, sizeof values);
        if (strcmp(values, cases[i].values) != 0)
            fail_msg("%s: %s instead of %s", cases[i].written, values, cases[i].values);
        job_close(j);
    }
}

/* 3037000500² is just above INT64_MAX. */
static void a_geometric_range_ends_before_it_overflows(void **state)
{
    char        values[512];
    struct job *j = parse("model: m\nsweep: {seed: 1..9223372036854775807*3037000500}\n");
    values_of(j, "seed", values, sizeof values);
    assert_string_equal(values, "1 3037000500");
    job_close(j);
}

static void zipped_axes_share_a_dimension(void **state)
{
    struct job         *j = parse("model: m\n"
                                  "sweep: {batch: [1, 2, 4], precision: [bf16, int8], kv: [bf16, int8], context: [0, 64], head: "
                                  "[full, semantic], zip: [[precision, kv], [context, head]]}\n");
    const struct block *b = &job_sweep(j)->blocks[0];
    assert_int_equal(b->n_axes, 5);
    assert_int_equal(b->n_dims, 3);
    assert_int_equal(block_size(b), 12);
    for (size_t i = 0; i < 12; i++) {
        struct cell c;
        int         model, texts;
        block_cell(job_sweep(j), b, i, &c, &model, &texts);
        assert_int_equal(c.precision == PRECISION_INT8, c.kv == KV_INT8);
        assert_int_equal(c.context == 64, c.head == HEAD_SEMANTIC);
        assert_int_equal(c.batch, 1 << i / 4); /* the first axis is the slowest */
    }
    job_close(j);
}

static void texts_come_in_every_form(void **state)
{
    struct job         *j = parse("model: m\n"
                                  "sweep: {texts: [reference, hello, [a, b], {reference: [mixed, short]}, {reference: long}, "
                                  "\"reference\", hello]}\n");
    const struct sweep *s = job_sweep(j);
    const struct axis  *a = &s->blocks[0].axes[0];
    static const int    sizes[]  = {4, 1, 2, 2, 1, 1, 1};
    static const char  *firsts[] = {"Hello, this", "hello", "a", "今天", "Artificial", "reference", "hello"};
    assert_int_equal(a->n, 7);
    for (int i = 0; i < 7; i++) {
        const struct text_set *t = &s->text_sets[a->values[i].i];
        assert_int_equal(t->n, sizes[i]);
        assert_memory_equal(t->texts[0], firsts[i], strlen(firsts[i]));
    }
    assert_int_equal(a->values[1].i, a->values[6].i); /* the same set is kept once */
    job_close(j);
}

static void set_replaces_adds_removes_and_pins(void **state)
{
    static const char        yaml[] = "model: m\n"
                                      "sweep: {precision: [bf16, int8], batch: [1, 2], kv: [bf16, int8], zip: [precision, kv], where: "
                                      "batch == 1}\n"
                                      "workload: {samples: 5}\n";
    static const char *const set[]  = {"workload.samples=2", "weights.share=none", "sweep.batch=[1, 4..8*2]", "sweep.where=",
                                       "model=other dir",    "kv=bf16",            "workload.texts=[a, b]"};
    char                     values[64];
    struct job              *j = parse_set(yaml, set, 7);
    const struct block      *b = &job_sweep(j)->blocks[0];
    int                      n;
    assert_int_equal(job_sweep(j)->base.workload.samples, 2);
    assert_int_equal(job_options(j)->share, SHARE_NONE);
    values_of(j, "batch", values, sizeof values);
    assert_string_equal(values, "1 4 8");
    assert_int_equal(b->n_where, 0);
    assert_string_equal(job_models(j, &n)[0], "other dir");
    assert_int_equal(b->n_axes, 2); /* kv is pinned */
    assert_int_equal(job_sweep(j)->base.kv, KV_BF16);
    assert_string_equal(job_text(j), yaml);
    job_close(j);
}

static void set_reaches_into_a_list_of_sweeps(void **state)
{
    static const char *const set[] = {"sweep.1.batch=[8, 16]"};
    struct job              *j = parse_set("model: m\nsweep: [{batch: 1}, {batch: 2}]\n", set, 1);
    assert_int_equal(job_sweep(j)->blocks[1].axes[0].n, 2);
    assert_int_equal(job_sweep(j)->blocks[0].axes[0].n, 1);
    job_close(j);
}

static void a_constant_on_the_command_line_wins_over_the_section(void **state)
{
    static const char *const set[] = {"samples=3"};
    struct job              *j     = parse_set("model: m\nworkload: {samples: 5}\n", set, 1);
    assert_int_equal(job_sweep(j)->base.workload.samples, 3);
    job_close(j);
}

static void mistakes_name_file_line_key_and_what_is_allowed(void **state)
{
    static const struct {
        const char *yaml, *complaint;
    } cases[] = {
        {"", "job.yaml:1: empty"},
        {"# nothing\n", "empty"},
        {"- a\n", "job.yaml:1: a job file is keys with values"},
        {"precision: bf16\n", "job.yaml: model: missing"},
        {"model:\n", "job.yaml:1: model: has no value"},
        {"model: [a, b]\n", "model: want one value here; lists of values stand under sweep:"},
        {"model: m\nbacth: 2\n", "job.yaml:2: bacth: unknown key (did you mean batch?)"},
        {"model: m\nflavour: 2\n", "job.yaml:2: flavour: unknown key; `qsweep help run`"},
        {"model: m\nworkload:\n  sampels: 2\n", "job.yaml:3: workload.sampels: unknown key (did you mean samples?)"},
        {"model: m\nworkload: {batch: 2}\n", "workload.batch: stands at the top, not here"},
        {"model: m\nshare: none\n", "job.yaml:2: share: stands under weights:, not here"},
        {"model: m\nworkload: 5\n", "job.yaml:2: workload: want keys with values"},
        {"model: m\nweights: {shares: none}\n", "weights.shares: unknown key (did you mean share?)"},
        {"model: m\nweights: {share: nodes}\n", "weights.share = \"nodes\", want one of auto, none, shard, shared"},
        {"model: m\nbatch: 0\n", "job.yaml:2: batch = \"0\", want a whole number from 1 to 1024"},
        {"model: m\nbatch: 1.5\n", "batch = \"1.5\", want a whole number"},
        {"model: m\nbatch: 99999999999999999999999\n", "want a whole number from 1 to 1024"},
        {"model: m\nbatch: [1, 2]\n", "job.yaml:2: batch: want one value here; lists of values stand under sweep:"},
        {"model: m\nbatch: 1..4\n", "batch = 1..4 is a range; ranges stand under sweep:"},
        {"model: m\nprecision: int9\n", "want one of fp32, bf16, int8 (did you mean int8?)"},
        {"model: m\nprecision: {default: int8}\n", "precision: want one value"},
        {"model: m\ndevice: gpu\n", "device = \"gpu\", want one of cpu, cuda"},
        {"model: m\norder: sorted\n", "order = \"sorted\", want one of interleaved, random, given"},
        {"model: m\nschedule: fast\n", "want one of static, dynamic"},
        {"model: m\nparallel: maybe\n", "parallel = \"maybe\""},
        {"model: m\nshare_gpus: 2\n", "share_gpus"},
        {"model: m\nforeign: kill\n", "mark, wait, ignore"},
        {"model: m\nforeign_wait: -1\n", "foreign_wait"},
        {"model: m\ngpu: H200\n", "gpu: want keys"},
        {"model: m\ngpu: {nmae: H200}\n", "gpu.nmae: unknown key"},
        {"model: m\ngpu: {memory: much}\n", "gpu.memory"},
        {"model: m\naudio: yes\n", "audio = \"yes\", want one of drop, keep"},
        {"model: m\ndeadline: -1\n", "deadline = \"-1\""},
        {"model: m\ndeadline: soon\n", "deadline = \"soon\", want a number"},
        {"model: m\nmemory_limit: 8XB\n", "want a size such as 8GB"},
        {"model: m\noutput: \"\"\n", "output: a path of 0 bytes"},
        {"model: m\nseed: -1\n", "seed = \"-1\""},
        {"model: m\nworkload: {temperature: 3}\n", "temperature = \"3\", want a number"},
        {"model: m\nworkload: {samples: 2}\nsamples: 3\n", "job.yaml:3: samples: stands twice, also under workload:"},
        {"model: m\nmodel: n\n", "job.yaml:2: model: stands twice, first in line 1"},
        {"model: m\nsweep: 4\n", "sweep: want axes with their values"},
        {"model: m\nsweep: []\n", "sweep: a list of 0 sweeps"},
        {"model: m\nsweep: {bacth: [1]}\n", "sweep.bacth: there is no such axis (did you mean batch?)"},
        {"model: m\nsweep: {batch: []}\n", "batch: the list is empty"},
        {"model: m\nsweep: {batch: [[1]]}\n", "batch: an axis is a list of plain values and ranges"},
        {"model: m\nsweep: {batch: {a: 1}}\n", "batch: an axis is a list of plain values and ranges"},
        {"model: m\nbatch: 2\nsweep:\n  batch: [1]\n", "job.yaml:4: sweep.batch: is also a constant in line 2"},
        {"model: m\nsweep: {batch: 8..1}\n", "batch = 8..1 counts down"},
        {"model: m\nsweep: {batch: 1..}\n", "a range is written 1..64*2"},
        {"model: m\nsweep: {batch: ..4}\n", "a range is written"},
        {"model: m\nsweep: {batch: 1..4*1}\n", "want a whole number above 1"},
        {"model: m\nsweep: {batch: 1..4+0}\n", "want a whole number above 0"},
        {"model: m\nsweep: {batch: 1..4*x}\n", "a range is written"},
        {"model: m\nsweep: {batch: 1..4*2*2}\n", "a range is written"},
        {"model: m\nsweep: {batch: 1..9999}\n", "want a whole number from 1 to 1024"},
        {"model: m\nsweep: {context: 0..8*2}\n", "times anything, 0 stays 0"},
        {"model: m\nsweep: {temperature: 0.1..0.9}\n", "a range of fractions needs a step"},
        {"model: m\nsweep: {seed: 0..9223372036854775807}\n", "more than 100000 values"},
        {"model: m\nsweep: {precision: bf16..int8}\n", "is a range"},
        {"model: m\nsweep: {batch: 1..1000, context: 1..1000, max_seq_len: 1..1000}\n", "more than 4000000 combinations"},
        {"model: m\nsweep: {batch: [1, 2], zip: [batch]}\n", "zip: want the names of two or more axes"},
        {"model: m\nsweep: {batch: [1, 2], zip: [batch, kv]}\n", "zip: \"kv\" is no axis of this sweep"},
        {"model: m\nsweep: {batch: [1, 2], zip: [batch, batch]}\n", "zip: batch is named twice"},
        {"model: m\nsweep: {batch: [1, 2], zip: batch}\n", "zip: want the names"},
        {"model: m\nsweep: {batch: [1, 2, 3], kv: [bf16, int8], zip: [batch, kv]}\n",
         "zip: batch has 3 values and kv has 2"},
        {"model: m\nsweep:\n  batch: [1, 2]\n  where: bacth <= 8\n",
         "job.yaml:4: where: \"bacth\" is not a value of a cell (did you mean batch?)"},
        {"model: m\nsweep: {batch: [1, 2], where: {a: b}}\n", "where: want a filter"},
        {"model: m\nwhere: batch +\n", "job.yaml:2: where: at the end"},
        {"model: m\ntexts: []\n", "texts: the list is empty"},
        {"model: m\ntexts: [[a]]\n", "texts: want a text"},
        {"model: m\ntexts: [\"\"]\n", "texts: number 1 has 0 bytes"},
        {"model: m\ntexts: {files: x}\n", "texts: want reference, a list of texts, {file: PATH}"},
        {"model: m\ntexts: {file: x}\n", "files cannot be read here"},
        {"model: m\ntexts: {reference: shrt}\n", "want one of short, medium, long, mixed (did you mean short?)"},
        {"model: m\nstop: 5\n", "stop: want keys such as"},
        {"model: m\nstop: {maximum: 5}\n", "stop.maximum: unknown key"},
        {"model: m\nstop: {min: 10, max: 5}\n", "stop: max = 5 is below min = 10"},
        {"model: m\nprequantized: x\n", "prequantized: want {int8: DIR}"},
        {"model: m\nprequantized: {fp8: x}\n", "prequantized.fp8: want {int8: DIR}"},
        {"prequantized: {int8: x}\nsweep: {model: [a, b]}\n", "prequantized: goes with one model, the job has 2"},
        {"model: m\n\tbatch: 2\n", "a tab"},
        {"model: m\nbatch: \xff\n", "job.yaml:2: byte 16"},
        {"model: &a m\noutput: *a\n", "anchors"},
        {"model: *a\n", "anchors"},
        {"model: !!python/object:os.system m\n", "tags"},
        {"model: m\n---\nmodel: n\n", "a second document"},
        {"model: \"a\\0b\"\n", "a NUL byte"},
        {"model: \"unclosed\n", "job.yaml:2"},
        {"model: m\n? [a]\n: b\n", "a key must be a word"},
        {"model: \"line\\nbreak\"\nbatch: \"1\\n2\"\n", "batch = \"1 2\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct job *j = NULL;
        status_t    st = job_parse(cases[i].yaml, strlen(cases[i].yaml), "job.yaml", NULL, 0, NULL, &j);
        assert_int_equal(st, ST_EINPUT);
        assert_null(j);
        if (!strstr(status_last(), cases[i].complaint) || strncmp(status_last(), "job.yaml:", 9) != 0)
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].yaml, status_last(), cases[i].complaint);
        assert_null(strchr(status_last(), '\n'));
    }
}

static void mistakes_in_set_are_usage_errors_that_name_it(void **state)
{
    static const struct {
        const char *set, *complaint;
    } cases[] = {
        {"batch", "want key=value"},
        {"=4", "want key=value"},
        {"bat ch=4", "a key is words joined by dots"},
        {"sweep..batch=4", "a key is words joined by dots"},
        {"model.x=4", "would be a key of something that is not a map"},
        {"model.x.y=4", "is one value, it has no keys"},
        {"sweep.batch.9=4", "would be a key of something that is not a map"},
        {"a.b.c.d.e.f.g.h.i.j.k.l.m.n=4", "nested too deeply"},
        {"batch=0", "batch = \"0\", want a whole number"},
        {"batch=[1, 2]", "lists of values stand under sweep:"},
        {"bacth=2", "unknown key (did you mean batch?)"},
        {"batch=[1", "did not find expected"},
        {"batch=*a", "anchors"},
        {"sweep.where=bacth <= 2", "did you mean batch?"},
        {"workload.samples=many", "samples = \"many\""},
    };
    static const char yaml[] = "model: m\nsweep: {batch: [1, 2]}\n";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct job *j = NULL;
        assert_int_equal(job_parse(yaml, strlen(yaml), "job.yaml", &cases[i].set, 1, NULL, &j), ST_EUSAGE);
        assert_null(j);
        if (!strstr(status_last(), cases[i].complaint) || strncmp(status_last(), "--set ", 6) != 0)
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].set, status_last(), cases[i].complaint);
    }
}

static void endless_input_is_refused_at_once(void **state)
{
    static const char *const units[] = {"[", "{a: ", "- ", "? ", "a: &b ", "\n", "#", "'"};
    char                    *text    = malloc(JOB_BYTES_MAX + 8);
    assert_non_null(text);
    for (int i = 0; i < 8; i++) {
        size_t      n = 0, unit = strlen(units[i]);
        struct job *j = NULL;
        for (; n + unit <= JOB_BYTES_MAX; n += unit)
            memcpy(text + n, units[i], unit);
        assert_int_equal(job_parse(text, n, "job.yaml", NULL, 0, NULL, &j), ST_EINPUT);
    }
    struct job *j = NULL;
    assert_int_equal(job_parse(text, JOB_BYTES_MAX + 1, "job.yaml", NULL, 0, NULL, &j), ST_EINPUT);
    free(text);
}

static void write_file(const char *path, const char *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static void texts_are_read_from_a_file_beside_the_job(void **state)
{
    char dir[] = "/tmp/qsweep-test-job-XXXXXX", job[128], texts[128], binary[128];
    assert_non_null(mkdtemp(dir));
    snprintf(job, sizeof job, "%s/a.yaml", dir);
    snprintf(texts, sizeof texts, "%s/lines.txt", dir);
    snprintf(binary, sizeof binary, "%s/binary.txt", dir);
    write_file(job, "model: m\ntexts: {file: lines.txt}\n", 34);
    write_file(texts, "one\n\n  two \r\nthree", 18);
    write_file(binary, "one\n\xff\xfe", 6);

    struct job *j;
    assert_int_equal(job_load(job, NULL, 0, &j), ST_OK);
    const struct text_set *t = &job_sweep(j)->text_sets[job_sweep(j)->base_texts];
    assert_int_equal(t->n, 3);
    assert_string_equal(t->texts[1], "  two");
    assert_string_equal(t->texts[2], "three");
    assert_string_equal(job_options(j)->output, "results/a");
    job_close(j);

    static const char *const set[]       = {"texts={file: binary.txt}", "texts={file: missing.txt}", "texts={file: .}"};
    static const char *const complaint[] = {"not UTF-8", "missing.txt: No such file", "not a regular file"};
    for (int i = 0; i < 3; i++) {
        assert_int_not_equal(job_load(job, &set[i], 1, &j), ST_OK);
        assert_non_null(strstr(status_last(), complaint[i]));
    }
    unlink(job);
    unlink(texts);
    unlink(binary);
    assert_int_equal(job_load(job, NULL, 0, &j), ST_EIO);
    assert_int_equal(job_load(dir, NULL, 0, &j), ST_EINPUT);
    rmdir(dir);
}

static void a_pipe_is_no_job_file_and_does_not_block(void **state)
{
    char        path[] = "/tmp/qsweep-test-fifo-XXXXXX";
    struct job *j;
    int         fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(job_load(path, NULL, 0, &j), ST_EINPUT);
    unlink(path);
}

static void the_help_names_every_key(void **state)
{
    char *text;
    assert_int_equal(job_help(&text), ST_OK);
    for (int i = 0; i < FIELD_COUNT; i++)
        assert_non_null(strstr(text, cell_fields[i].name));
    static const char *const keys[] = {"model", "prequantized", "output", "order", "schedule", "parallel",
                                       "deadline", "audio", "share", "stop", "zip", "where", "--set",
                                       "share_gpus", "foreign", "foreign_wait", "each_model"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        assert_non_null(strstr(text, keys[i]));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_of_one_line_has_the_reference_s_workload),
        cmocka_unit_test(every_key_reaches_its_value),
        cmocka_unit_test(lists_and_ranges_expand_to_their_values),
        cmocka_unit_test(a_geometric_range_ends_before_it_overflows),
        cmocka_unit_test(zipped_axes_share_a_dimension),
        cmocka_unit_test(texts_come_in_every_form),
        cmocka_unit_test(set_replaces_adds_removes_and_pins),
        cmocka_unit_test(set_reaches_into_a_list_of_sweeps),
        cmocka_unit_test(a_constant_on_the_command_line_wins_over_the_section),
        cmocka_unit_test(mistakes_name_file_line_key_and_what_is_allowed),
        cmocka_unit_test(mistakes_in_set_are_usage_errors_that_name_it),
        cmocka_unit_test(endless_input_is_refused_at_once),
        cmocka_unit_test(texts_are_read_from_a_file_beside_the_job),
        cmocka_unit_test(a_pipe_is_no_job_file_and_does_not_block),
        cmocka_unit_test(the_help_names_every_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
