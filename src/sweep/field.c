#include "sweep/field.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const precision_choices[] = {"fp32", "bf16", "int8"};
static const char *const kv_choices[]        = {"fp32", "bf16", "int8"};
static const char *const head_choices[]      = {"full", "semantic"};
static const char *const engine_choices[]    = {"auto", "ops", "graph", "persistent"};
static const char *const codec_choices[]     = {"off", "fp32", "bf16", "int8"};
static const char *const device_choices[]    = {"cpu", "cuda"};
static const char *const recipe_choices[]    = {"none", "torchao", "torchao-v2", "legacy"};
static const char *const sampling_choices[]  = {"s1", "s2"};
static const char *const history_choices[]   = {"faithful", "fixed"};
static const char *const length_choices[]    = {"natural", "fixed"};

_Static_assert(sizeof precision_choices / sizeof *precision_choices == PRECISION_COUNT, "one name a precision");
_Static_assert(sizeof kv_choices / sizeof *kv_choices == KV_COUNT, "one name a KV format");
_Static_assert(sizeof head_choices / sizeof *head_choices == HEAD_COUNT, "one name a head mode");
_Static_assert(sizeof engine_choices / sizeof *engine_choices == ENGINE_COUNT, "one name an engine");
_Static_assert(sizeof codec_choices / sizeof *codec_choices == CODEC_COUNT, "one name a codec mode");
_Static_assert(sizeof device_choices / sizeof *device_choices == DEVICE_CLASS_COUNT, "one name a device class");
_Static_assert(sizeof recipe_choices / sizeof *recipe_choices == RECIPE_LEGACY + 1, "one name a recipe");
_Static_assert(sizeof sampling_choices / sizeof *sampling_choices == SAMPLING_COUNT, "one name a set of rules");
_Static_assert(sizeof length_choices / sizeof *length_choices == LENGTH_COUNT, "one name a length mode");
_Static_assert(sizeof(enum precision) == sizeof(int), "choices are read and written as int");

#define AT(member) offsetof(struct cell, member)
#define CHOICE(name, section, member, names, help)                                                                     \
    {name, FIELD_CHOICE, section, AT(member), names, (int)(sizeof names / sizeof *names), 0, 0, false, help}
#define NUMBER(name, kind, section, member, min, max, help)                                                            \
    {name, kind, section, AT(member), NULL, 0, min, max, false, help}

/* The sampler's open intervals (0, 2) end at the nearest floats inside. */
#define TINY 1e-6
#define BELOW_TWO 1.999999

const struct field cell_fields[FIELD_COUNT] = {
    NUMBER("batch", FIELD_INT, SECTION_AXIS, batch, 1, 1024, "utterances decoded together"),
    CHOICE("codec", SECTION_AXIS, codec, codec_choices, "turn codes into audio, and in which precision"),
    NUMBER("context", FIELD_INT, SECTION_AXIS, context, 0, 1 << 20, "frames of a synthetic reference voice"),
    NUMBER("control_tokens", FIELD_BOOL, SECTION_WORKLOAD, workload.control_tokens, 0, 1,
           "literal special tokens in texts are control ids"),
    CHOICE("device", SECTION_AXIS, device_class, device_choices, "what decodes"),
    CHOICE("engine", SECTION_AXIS, engine, engine_choices, "how a frame is driven; auto takes the fastest there is"),
    NUMBER("greedy", FIELD_BOOL, SECTION_WORKLOAD, sampling.greedy, 0, 1, "argmax instead of a draw"),
    CHOICE("head", SECTION_AXIS, head, head_choices, "rows of the slow head that are computed"),
    CHOICE("history", SECTION_WORKLOAD, sampling.history, history_choices, "the reference's history rule or the fixed one"),
    CHOICE("kv", SECTION_AXIS, kv, kv_choices, "format of the KV cache"),
    CHOICE("length", SECTION_WORKLOAD, workload.length, length_choices, "stop at im_end, or decode max_new_tokens frames (auto: fixed for random weights)"),
    NUMBER("max_new_tokens", FIELD_INT, SECTION_WORKLOAD, workload.max_new_tokens, 1, 1 << 20, "frames at most"),
    NUMBER("max_seq_len", FIELD_INT, SECTION_AXIS, max_seq_len, 0, 1 << 22, "KV positions allocated, 0 = as needed"),
    {"memory_limit", FIELD_BYTES, SECTION_AXIS, AT(memory_limit), NULL, 0, 0, 0x1p60, true,
     "device memory a cell may use: a big card behaves like a small one"},
    CHOICE("precision", SECTION_AXIS, precision, precision_choices, "format of the weights of linear layers"),
    NUMBER("processes", FIELD_INT, SECTION_WORKLOAD, workload.processes, 1, 64,
           "fresh processes a cell's samples are spread over"),
    {"quality", FIELD_BOOL, SECTION_WORKLOAD, AT(workload.quality), NULL, 0, 0, 1, true,
     "teacher-forced comparison with bf16 (of bf16 with fp32) after the measurement"},
    {"quality_frames", FIELD_INT, SECTION_WORKLOAD, AT(workload.quality_frames), NULL, 0, 0, 4096, true,
     "frames of each text that quality looks at, 0 = 64"},
    {"quality_texts", FIELD_INT, SECTION_WORKLOAD, AT(workload.quality_texts), NULL, 0, 0, TEXTS_MAX, true,
     "texts that quality looks at, 0 = all"},
    CHOICE("recipe", SECTION_WEIGHTS, recipe, recipe_choices, "how INT8 weights are made at load"),
    NUMBER("repetition_penalty", FIELD_FLOAT, SECTION_WORKLOAD, sampling.repetition_penalty, TINY, BELOW_TWO,
           "divides logits of recent tokens; s2 ignores it"),
    NUMBER("samples", FIELD_INT, SECTION_WORKLOAD, workload.samples, 1, 100000, "measured repeats per text"),
    CHOICE("sampling", SECTION_AXIS, sampling.rules, sampling_choices, "sampling rules of S1 or S2"),
    NUMBER("seed", FIELD_SEED, SECTION_AXIS, sampling.seed, 0, 0x1p63, "of all noise"),
    NUMBER("temperature", FIELD_FLOAT, SECTION_WORKLOAD, sampling.temperature, TINY, BELOW_TWO, "of the draw"),
    NUMBER("top_k", FIELD_INT, SECTION_WORKLOAD, sampling.top_k, 0, 1 << 20, "0 = off; s2 uses 30"),
    NUMBER("top_p", FIELD_FLOAT, SECTION_WORKLOAD, sampling.top_p, TINY, 1, "nucleus"),
    NUMBER("warmup", FIELD_INT, SECTION_WORKLOAD, workload.warmup, 0, 10000, "requests before measuring"),
};

int field_find(const char *name)
{
    for (int i = 0; i < FIELD_COUNT; i++)
        if (strcmp(cell_fields[i].name, name) == 0)
            return i;
    return -1;
}

/* Members are reached by offset, so they are copied rather than dereferenced through a cast pointer. */
union field_value field_get(const struct field *f, const struct cell *c)
{
    const char       *p = (const char *)c + f->offset;
    union field_value v = {0};
    int               n;
    float             x;
    bool              b;
    size_t            bytes;
    uint64_t          seed;
    switch (f->kind) {
    case FIELD_CHOICE:
    case FIELD_INT:
        memcpy(&n, p, sizeof n);
        v.i = n;
        break;
    case FIELD_FLOAT:
        memcpy(&x, p, sizeof x);
        v.f = (double)x;
        break;
    case FIELD_BOOL:
        memcpy(&b, p, sizeof b);
        v.i = b;
        break;
    case FIELD_BYTES:
        memcpy(&bytes, p, sizeof bytes);
        v.i = (int64_t)bytes;
        break;
    case FIELD_SEED:
        memcpy(&seed, p, sizeof seed);
        v.i = (int64_t)seed;
        break;
    }
    return v;
}

void field_set(const struct field *f, struct cell *c, union field_value v)
{
    char    *p     = (char *)c + f->offset;
    int      n     = (int)v.i;
    float    x     = (float)v.f;
    bool     b     = v.i != 0;
    size_t   bytes = (size_t)v.i;
    uint64_t seed  = (uint64_t)v.i;
    switch (f->kind) {
    case FIELD_CHOICE:
    case FIELD_INT:
        memcpy(p, &n, sizeof n);
        break;
    case FIELD_FLOAT:
        memcpy(p, &x, sizeof x);
        break;
    case FIELD_BOOL:
        memcpy(p, &b, sizeof b);
        break;
    case FIELD_BYTES:
        memcpy(p, &bytes, sizeof bytes);
        break;
    case FIELD_SEED:
        memcpy(p, &seed, sizeof seed);
        break;
    }
}

/* snprintf takes 150 ns a number; a plan of 100,000 cells writes two million. */
static int integer_text(int64_t v, char *out)
{
    char     digits[24];
    int      n = 0, len = 0;
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    do
        digits[n++] = (char)('0' + u % 10);
    while (u /= 10);
    if (v < 0)
        out[len++] = '-';
    while (n)
        out[len++] = digits[--n];
    out[len] = '\0';
    return len;
}

/* Decimals of up to six digits that stand for v, without printf: the numbers that people write, in 20 ns instead of 600.
 * Six digits are far from the middle between two floats, so rounding twice (to double, to float) does no harm. */
static int short_decimal(float v, char *out)
{
    static const double power[] = {1, 1e1, 1e2, 1e3, 1e4, 1e5};
    for (int decimals = 0; v >= 1e-4f && decimals < 6; decimals++) {
        double digits = floor((double)v * power[decimals] + 0.5);
        if (digits >= 1e6)
            return 0;
        if ((float)(digits / power[decimals]) != v)
            continue;
        int64_t whole = (int64_t)digits / (int64_t)power[decimals], rest = (int64_t)digits % (int64_t)power[decimals];
        int     n     = integer_text(whole, out);
        if (decimals)
            out[n++] = '.';
        for (int k = decimals - 1; k >= 0; k--)
            out[n++] = (char)('0' + rest / (int64_t)power[k] % 10);
        out[n] = '\0';
        return n;
    }
    return 0;
}

int float_text(float v, char *out)
{
    int n = short_decimal(v, out);
    /* %.6g is enough for what people write; 9 digits are enough for every float. */
    for (int digits = 6; n == 0; digits++) {
        n = snprintf(out, 24, "%.*g", digits, (double)v);
        if (digits < 9 && strtof(out, NULL) != v)
            n = 0;
    }
    return n;
}

int field_format(const struct field *f, union field_value v, char *out)
{
    const char *word;
    switch (f->kind) {
    case FIELD_FLOAT:
        return float_text((float)v.f, out);
    case FIELD_CHOICE:
        word = v.i >= 0 && v.i < f->n_choices ? f->choices[v.i] : "?";
        break;
    case FIELD_BOOL:
        word = v.i ? "true" : "false";
        break;
    default:
        return integer_text(v.i, out);
    }
    size_t n = strlen(word);
    memcpy(out, word, n + 1);
    return (int)n;
}

void field_allowed(const struct field *f, char *out, size_t size)
{
    size_t n = 0;
    switch (f->kind) {
    case FIELD_CHOICE:
        n = (size_t)snprintf(out, size, "one of");
        for (int i = 0; i < f->n_choices && n < size; i++)
            n += (size_t)snprintf(out + n, size - n, "%s %s", i ? "," : "", f->choices[i]);
        break;
    case FIELD_INT:
        snprintf(out, size, "a whole number from %.0f to %.0f", f->min, f->max);
        break;
    case FIELD_FLOAT:
        snprintf(out, size, "a number from %.6g to %.7g", f->min, f->max);
        break;
    case FIELD_BOOL:
        snprintf(out, size, "true or false");
        break;
    case FIELD_BYTES:
        snprintf(out, size, "a size such as 8GB, 500MB or 12GiB");
        break;
    case FIELD_SEED:
        snprintf(out, size, "a whole number from 0 to 9223372036854775807");
        break;
    }
}

/* Digits only, so that "0x10", "1e3", " 1" and "+1" are refused; sizes and counts have one spelling. */
static bool parse_integer(const char *text, int64_t *out)
{
    const char *p = text + (*text == '-');
    if (!isdigit((unsigned char)*p))
        return false;
    for (const char *q = p; *q; q++)
        if (!isdigit((unsigned char)*q))
            return false;
    errno       = 0;
    long long v = strtoll(text, NULL, 10);
    *out        = v;
    return errno == 0;
}

static bool parse_number(const char *text, double *out)
{
    if (!*text || text[strspn(text, "0123456789.eE+-")] != '\0')
        return false;
    char *end;
    *out = strtod(text, &end);
    return *end == '\0' && isfinite(*out);
}

static bool parse_bytes(const char *text, int64_t *out)
{
    static const struct {
        const char *name;
        double      factor;
    } units[] = {{"", 1},     {"B", 1},       {"kB", 1e3},     {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    char   number[32];
    size_t n = strspn(text, "0123456789.");
    if (n == 0 || n >= sizeof number)
        return false;
    memcpy(number, text, n);
    number[n] = '\0';
    double v;
    if (!parse_number(number, &v))
        return false;
    while (text[n] == ' ')
        n++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(text + n, units[i].name) != 0)
            continue;
        v *= units[i].factor;
        if (v > 0x1p60)
            return false;
        *out = (int64_t)(v + 0.5);
        return true;
    }
    return false;
}

static bool parse_bool(const char *text, int64_t *out)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on"};
    for (int i = 0; i < 6; i++)
        if (strcmp(text, words[i]) == 0) {
            *out = i & 1;
            return true;
        }
    return false;
}

static bool parse_choice(const struct field *f, const char *text, int64_t *out)
{
    for (int i = 0; i < f->n_choices; i++)
        if (strcmp(text, f->choices[i]) == 0) {
            *out = i;
            return true;
        }
    return false;
}

bool field_parse(const struct field *f, const char *text, union field_value *out, char *why, size_t why_size)
{
    union field_value v  = {0};
    bool              ok = false;
    switch (f->kind) {
    case FIELD_CHOICE:
        ok = parse_choice(f, text, &v.i);
        break;
    case FIELD_INT:
        ok = parse_integer(text, &v.i) && (double)v.i >= f->min && (double)v.i <= f->max;
        break;
    case FIELD_SEED:
        ok = parse_integer(text, &v.i) && v.i >= 0;
        break;
    case FIELD_FLOAT:
        ok = parse_number(text, &v.f) && v.f >= f->min && v.f <= f->max;
        break;
    case FIELD_BOOL:
        ok = parse_bool(text, &v.i);
        break;
    case FIELD_BYTES:
        ok = parse_bytes(text, &v.i);
        break;
    }
    if (ok) {
        *out = v;
        return true;
    }
    char allowed[256];
    field_allowed(f, allowed, sizeof allowed);
    const char *near = f->kind == FIELD_CHOICE ? nearest_name(text, f->choices, f->n_choices) : NULL;
    snprintf(why, why_size, "%s = \"%.40s\", want %s%s%s%s", f->name, text, allowed, near ? " (did you mean " : "",
             near ? near : "", near ? "?)" : "");
    return false;
}

void text_one_line(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = ' ';
}

/* Optimal string alignment distance; names longer than the table are far from everything. */
static int distance(const char *a, const char *b)
{
    enum { LONGEST = 40 };
    int m = (int)strnlen(a, LONGEST + 1), n = (int)strnlen(b, LONGEST + 1);
    if (m > LONGEST || n > LONGEST)
        return LONGEST;
    int d[LONGEST + 1][LONGEST + 1];
    for (int i = 0; i <= m; i++)
        d[i][0] = i;
    for (int j = 0; j <= n; j++)
        d[0][j] = j;
    for (int i = 1; i <= m; i++)
        for (int j = 1; j <= n; j++) {
            int best = d[i - 1][j - 1] + (tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[j - 1]));
            if (d[i - 1][j] + 1 < best)
                best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best)
                best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[m][n];
}

const char *nearest_name(const char *wrong, const char *const *names, int n)
{
    const char *best      = NULL;
    int         best_dist = 0;
    for (int i = 0; i < n; i++) {
        int dist = distance(wrong, names[i]);
        if (3 * dist <= (int)strlen(names[i]) + 1 && (!best || dist < best_dist)) {
            best      = names[i];
            best_dist = dist;
        }
    }
    return best;
}
