#include "bench/summary_print.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_WIDTH = 100, CELL_MAX = 64 };

int summary_format_parse(const char *name)
{
    static const char *const names[SUMMARY_FORMAT_COUNT] = {"md", "csv", "json", "jsonl"};
    for (int i = 0; i < SUMMARY_FORMAT_COUNT; i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    return -1;
}

static status_t end_output(FILE *to)
{
    return fflush(to) == 0 && !ferror(to) ? ST_OK : FAIL(ST_EIO, "output: %s", strerror(errno));
}

/* ---- CSV, JSON --------------------------------------------------------------------------------------------------- */

/* RFC 4180: quotes around what holds a comma, a quote or a line break. */
static void csv_text(const char *text, FILE *to)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, to);
        return;
    }
    fputc('"', to);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', to);
        fputc(*text, to);
    }
    fputc('"', to);
}

static void print_csv(const struct summary_row *rows, size_t n, FILE *to)
{
    char   text[300];
    size_t columns = summary_column_count();
    for (size_t c = 0; c < columns; c++)
        fprintf(to, "%s%s", c ? "," : "", summary_column(c).name);
    fputc('\n', to);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < columns; c++) {
            struct summary_column column = summary_column(c);
            summary_value_text(&rows[i], &column, text, sizeof text);
            csv_text(text, to);
            fputc(c + 1 < columns ? ',' : '\n', to);
        }
}

static json_t *value_json(const struct summary_row *row, const struct summary_column *c)
{
    const char       *at = (const char *)row + c->offset;
    int64_t           whole;
    double            real;
    union field_value axis;
    switch (c->kind) {
    case SUMMARY_TEXT:
        return json_string(at);
    case SUMMARY_INT:
        memcpy(&whole, at, sizeof whole);
        return json_integer(whole);
    case SUMMARY_REAL:
        memcpy(&real, at, sizeof real);
        return isfinite(real) ? json_real(real) : json_null();
    default:
        memcpy(&axis, at, sizeof axis);
        if (c->field->kind == FIELD_CHOICE && axis.i < 0)
            return json_null();
        return field_to_json(c->field, axis);
    }
}

json_t *summary_to_json(const struct summary_row *row)
{
    json_t *object = json_object();
    for (size_t c = 0; object && c < summary_column_count(); c++) {
        struct summary_column column = summary_column(c);
        if (json_object_set_new(object, column.name, value_json(row, &column)) != 0) {
            json_decref(object);
            object = NULL;
        }
    }
    return object;
}

static status_t print_json(const struct summary_row *rows, size_t n, bool lines, FILE *to)
{
    if (!lines)
        fputs("[\n", to);
    for (size_t i = 0; i < n; i++) {
        json_t *object = summary_to_json(&rows[i]);
        if (!object || json_dumpf(object, to, JSON_COMPACT | JSON_REAL_PRECISION(15)) != 0) {
            json_decref(object);
            return FAIL(ferror(to) ? ST_EIO : ST_ENOMEM, "cell %s cannot be printed", rows[i].id);
        }
        json_decref(object);
        fputs(lines || i + 1 == n ? "\n" : ",\n", to);
    }
    if (!lines)
        fputs("]\n", to);
    return ST_OK;
}

/* ---- Markdown: columns ------------------------------------------------------------------------------------------- */

/* Columns on a terminal that text takes: code points, which is right for what we print. */
static int shown_width(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xC0) != 0x80;
    return n;
}

/* Four significant digits without an exponent where people read it: 0.01234, 1.234, 123.4, 12340. */
static void four_digits(double x, char *out, size_t size)
{
    if (!isfinite(x))
        snprintf(out, size, "—");
    else if (x != 0 && (fabs(x) < 1e-3 || fabs(x) >= 1e7))
        snprintf(out, size, "%.3e", x);
    else {
        int digits = x == 0 ? 0 : 3 - (int)floor(log10(fabs(x)));
        snprintf(out, size, "%.*f", digits > 0 ? digits : 0, x);
    }
}

struct metric {
    const char *head;
    int         priority; /* the table is filled with the smallest numbers first, in this order of columns */
    void (*format)(const struct summary_row *row, char *out, size_t size);
};

#define PLAIN(field)                                                                                                   \
    static void format_##field(const struct summary_row *row, char *out, size_t size)                                  \
    {                                                                                                                  \
        four_digits(row->field, out, size);                                                                            \
    }
PLAIN(vram_baseline_mb)
PLAIN(vram_peak_mb)
PLAIN(latency_p95_s)
PLAIN(frames_per_s)
PLAIN(tokens_per_s_reference)
PLAIN(rtf)
PLAIN(throughput_x_realtime)
PLAIN(bandwidth_gb_s)

/* The deviation with as many decimals as the mean. */
static void format_latency(const struct summary_row *row, char *out, size_t size)
{
    char mean[32];
    four_digits(row->latency_mean_s, mean, sizeof mean);
    const char *point = strchr(mean, '.');
    if (row->n_samples == 1)
        snprintf(out, size, "%s", mean);
    else if (isfinite(row->latency_mean_s))
        snprintf(out, size, "%s ± %.*f", mean, point ? (int)strlen(point + 1) : 0, row->latency_std_s);
    else
        snprintf(out, size, "—");
}

static void format_status(const struct summary_row *row, char *out, size_t size)
{
    snprintf(out, size, "%s", row->status);
}

static void format_samples(const struct summary_row *row, char *out, size_t size)
{
    snprintf(out, size, "%" PRId64, row->n_samples);
}

static const struct metric metrics[] = {
    {"status", 0, format_status},
    {"n", 4, format_samples},
    {"VRAM MB", 2, format_vram_baseline_mb},
    {"peak MB", 3, format_vram_peak_mb},
    {"latency s", 2, format_latency},
    {"p95 s", 6, format_latency_p95_s},
    {"frames/s", 1, format_frames_per_s},
    {"tokens/s", 8, format_tokens_per_s_reference},
    {"RTF", 3, format_rtf},
    {"× real time", 5, format_throughput_x_realtime},
    {"GB/s", 7, format_bandwidth_gb_s},
};
enum { METRIC_COUNT = sizeof metrics / sizeof *metrics, PRIORITIES = 9 };

/* One column of the table: an axis, the label, or a metric. */
struct shown {
    const char          *head;
    const struct field  *axis;
    const struct metric *metric;
    int                  width;
};

static void shown_text(const struct shown *s, const struct summary_row *row, char *out, size_t size)
{
    if (s->metric)
        s->metric->format(row, out, size);
    else if (s->axis) {
        char text[FIELD_TEXT_MAX];
        field_format(s->axis, row->axes[s->axis - cell_fields], text);
        snprintf(out, size, "%s", text);
    } else
        snprintf(out, size, "%s", row->label);
}

static void measure(struct shown *s, const struct summary_row *rows, size_t n)
{
    char text[128];
    s->width = shown_width(s->head) > 3 ? shown_width(s->head) : 3; /* room for "--:" */
    for (size_t i = 0; i < n; i++) {
        shown_text(s, &rows[i], text, sizeof text);
        s->width = shown_width(text) > s->width ? shown_width(text) : s->width;
    }
}

static bool varies(const struct summary_row *rows, size_t n, int axis)
{
    for (size_t i = 1; i < n; i++)
        if (rows[i].axes[axis].i != rows[0].axes[axis].i)
            return true;
    return false;
}

/* Does the precision alone decide this axis? Recipes and KV formats often follow it and then say nothing new. */
static bool follows_precision(const struct summary_row *rows, size_t n, int axis)
{
    int     precision = field_find("precision");
    bool    seen[PRECISION_COUNT + 1] = {false};
    int64_t value[PRECISION_COUNT + 1];
    for (size_t i = 0; i < n; i++) {
        int64_t p = rows[i].axes[precision].i;
        p = p < 0 || p >= PRECISION_COUNT ? PRECISION_COUNT : p;
        if (seen[p] && value[p] != rows[i].axes[axis].i)
            return false;
        seen[p] = true;
        value[p] = rows[i].axes[axis].i;
    }
    return true;
}

static bool is_shown(const struct summary_row *rows, size_t n, int axis)
{
    const char *name = cell_fields[axis].name;
    bool        minor = strcmp(name, "recipe") == 0 || strcmp(name, "kv") == 0;
    return varies(rows, n, axis) && !(minor && follows_precision(rows, n, axis));
}

/* Axes that vary, precision always first; when they take more than half the line, one column with the labels instead.
 */
static size_t choose_axes(const struct summary_row *rows, size_t n, struct shown *out)
{
    size_t count = 0;
    int    precision = field_find("precision"), width = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < FIELD_COUNT; i++) {
            if ((i == precision) != (pass == 0) || (pass == 1 && !is_shown(rows, n, i)))
                continue;
            out[count] = (struct shown){.head = cell_fields[i].name, .axis = &cell_fields[i]};
            measure(&out[count], rows, n);
            width += out[count++].width + 3;
        }
    if (width <= LINE_WIDTH / 2)
        return count;
    out[0] = (struct shown){.head = "cell"};
    measure(&out[0], rows, n);
    return 1;
}

static size_t choose_columns(const struct summary_row *rows, size_t n, struct shown *out)
{
    size_t       count = choose_axes(rows, n, out);
    bool         taken[METRIC_COUNT] = {false};
    struct shown candidate;
    int          width = 1;
    for (size_t i = 0; i < count; i++)
        width += out[i].width + 3;
    for (int priority = 0; priority < PRIORITIES; priority++)
        for (int i = 0; i < METRIC_COUNT; i++) {
            candidate = (struct shown){.head = metrics[i].head, .metric = &metrics[i]};
            measure(&candidate, rows, n);
            if (metrics[i].priority != priority || width + candidate.width + 3 > LINE_WIDTH)
                continue;
            width += candidate.width + 3;
            taken[i] = true;
        }
    for (int i = 0; i < METRIC_COUNT; i++)
        if (taken[i]) {
            out[count] = (struct shown){.head = metrics[i].head, .metric = &metrics[i]};
            measure(&out[count++], rows, n);
        }
    return count;
}

/* ---- Markdown: lines --------------------------------------------------------------------------------------------- */

/* Text in a column: numbers to the right. A bar would end the column. */
static void put_padded(const char *text, int width, bool right, FILE *to)
{
    int space = width - shown_width(text);
    fprintf(to, "%*s", right && space > 0 ? space : 0, "");
    for (; *text; text++)
        fputc(*text == '|' ? '/' : *text, to);
    fprintf(to, "%*s", !right && space > 0 ? space : 0, "");
}

static bool goes_right(const struct shown *s)
{
    return s->metric ? s->metric->format != format_status : s->axis && s->axis->kind != FIELD_CHOICE;
}

static void put_table(const struct summary_row *rows, size_t n, FILE *to)
{
    struct shown columns[FIELD_COUNT + METRIC_COUNT + 1];
    size_t       count = choose_columns(rows, n, columns);
    char         text[128];
    for (size_t c = 0; c < count; c++) {
        fputs("| ", to);
        put_padded(columns[c].head, columns[c].width, goes_right(&columns[c]), to);
        fputc(' ', to);
    }
    fputs("|\n", to);
    for (size_t c = 0; c < count; c++) {
        fputs("| ", to);
        for (int i = 0; i < columns[c].width - 1; i++)
            fputc('-', to);
        fputs(goes_right(&columns[c]) ? ": " : "- ", to);
    }
    fputs("|\n", to);
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < count; c++) {
            fputs("| ", to);
            shown_text(&columns[c], &rows[i], text, sizeof text);
            put_padded(text, columns[c].width, goes_right(&columns[c]), to);
            fputc(' ', to);
        }
        fputs("|\n", to);
    }
}

/* Words of text, broken before LINE_WIDTH; following lines are indented. */
static void put_wrapped(const char *text, int indent, FILE *to)
{
    int at = 0;
    for (const char *word = text; *word;) {
        size_t n = strcspn(word, " ");
        char   piece[512];
        snprintf(piece, sizeof piece, "%.*s", (int)(n < sizeof piece - 1 ? n : sizeof piece - 1), word);
        int width = shown_width(piece);
        if (at > indent && at + 1 + width > LINE_WIDTH) {
            fprintf(to, "\n%*s", indent, "");
            at = indent;
        } else if (at > 0) {
            fputc(' ', to);
            at++;
        }
        fputs(piece, to);
        at += width;
        word += n;
        word += strspn(word, " ");
    }
    fputc('\n', to);
}

/* Where the cells ran and which values all of them share. */
static void put_constants(const struct summary_row *rows, size_t n, FILE *to)
{
    char   line[2048] = "", text[FIELD_TEXT_MAX];
    size_t at = 0;
    bool   same_device = true;
    for (size_t i = 1; i < n; i++)
        same_device = same_device && strcmp(rows[i].device_name, rows[0].device_name) == 0;
    if (same_device && rows[0].device_name[0])
        at = (size_t)snprintf(line, sizeof line, "%s; ", rows[0].device_name);
    at += (size_t)snprintf(line + at, sizeof line - at, "all cells:");
    for (int i = 0; i < FIELD_COUNT; i++) {
        const struct field *f = &cell_fields[i];
        if (varies(rows, n, i) || strcmp(f->name, "precision") == 0 || (f->omit_zero && rows[0].axes[i].i == 0))
            continue;
        field_format(f, rows[0].axes[i], text);
        if (at < sizeof line)
            at += (size_t)snprintf(line + at, sizeof line - at, " %s=%s", f->name, text);
    }
    put_wrapped(line, 2, to);
    fputc('\n', to);
}

/* ---- Markdown: precisions against each other --------------------------------------------------------------------- */

static bool same_work(const struct summary_row *a, const struct summary_row *b)
{
    for (int i = 0; i < FIELD_COUNT; i++)
        if (strcmp(cell_fields[i].name, "precision") && strcmp(cell_fields[i].name, "recipe") &&
            strcmp(cell_fields[i].name, "kv") && a->axes[i].i != b->axes[i].i)
            return false;
    return strcmp(a->fingerprint, b->fingerprint) == 0;
}

static bool is_ok(const struct summary_row *row)
{
    return strcmp(row->status, "ok") == 0;
}

static const char *precision_text(const struct summary_row *row, char *out)
{
    int i = field_find("precision");
    field_format(&cell_fields[i], row->axes[i], out);
    return out;
}

/* The cell of the same work in the wider format: bf16, else fp32. */
static const struct summary_row *baseline_of(const struct summary_row *rows, size_t n, const struct summary_row *row)
{
    static const char *const wider[] = {"bf16", "fp32"};
    char                     own[FIELD_TEXT_MAX], other[FIELD_TEXT_MAX];
    precision_text(row, own);
    for (int w = 0; w < 2; w++)
        for (size_t i = 0; i < n && strcmp(own, "fp32") != 0 && strcmp(own, wider[w]) != 0; i++)
            if (is_ok(&rows[i]) && strcmp(precision_text(&rows[i], other), wider[w]) == 0 && same_work(&rows[i], row))
                return &rows[i];
    return NULL;
}

static void percent(double value, double base, char out[32])
{
    if (isfinite(value) && isfinite(base) && base != 0)
        snprintf(out, 32, "%+.1f %%", 100 * (value - base) / base);
    else
        snprintf(out, 32, "—");
}

static void put_differences(const struct summary_row *rows, size_t n, FILE *to)
{
    bool any = false;
    for (size_t i = 0; i < n; i++) {
        const struct summary_row *row = &rows[i], *base = is_ok(row) ? baseline_of(rows, n, row) : NULL;
        char                      name[2 * FIELD_TEXT_MAX + 4], own[FIELD_TEXT_MAX], other[FIELD_TEXT_MAX], text[5][32];
        if (!base)
            continue;
        if (!any)
            fputs("\n| against            | batch | context | VRAM     | peak     | latency  | frames/s | RTF      |\n"
                  "| ------------------ | ----: | ------: | -------: | -------: | -------: | -------: | -------: |\n",
                  to);
        any = true;
        snprintf(name, sizeof name, "%s / %s", precision_text(row, own), precision_text(base, other));
        percent(row->vram_baseline_mb, base->vram_baseline_mb, text[0]);
        percent(row->vram_peak_mb, base->vram_peak_mb, text[1]);
        percent(row->latency_mean_s, base->latency_mean_s, text[2]);
        percent(row->frames_per_s, base->frames_per_s, text[3]);
        percent(row->rtf, base->rtf, text[4]);
        fprintf(to, "| %-18s | %5" PRId64 " | %7" PRId64 " |", name, summary_axis(row, "batch").i,
                summary_axis(row, "context").i);
        for (int k = 0; k < 5; k++) {
            fputc(' ', to);
            put_padded(text[k], 8, true, to);
            fputs(" |", to);
        }
        fputc('\n', to);
    }
}

static void put_failures(const struct summary_row *rows, size_t n, FILE *to)
{
    size_t failed = 0;
    char   line[1024];
    for (size_t i = 0; i < n; i++)
        failed += !is_ok(&rows[i]);
    if (failed)
        fprintf(to, "\nNot ok: %zu of %zu cells\n\n", failed, n);
    for (size_t i = 0; i < n; i++)
        if (!is_ok(&rows[i])) {
            snprintf(line, sizeof line, "- %s (%.8s): %s%s%s", rows[i].label, rows[i].id, rows[i].status,
                     rows[i].reason[0] ? ": " : "", rows[i].reason);
            put_wrapped(line, 2, to);
        }
}

static void print_markdown(const struct summary_row *rows, size_t n, FILE *to)
{
    if (n == 0) {
        fputs("no cells\n", to);
        return;
    }
    put_constants(rows, n, to);
    put_table(rows, n, to);
    put_differences(rows, n, to);
    put_failures(rows, n, to);
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

status_t summary_print(const struct summary_row *rows, size_t n, enum summary_format format, FILE *to)
{
    if (format == SUMMARY_MD)
        print_markdown(rows, n, to);
    else if (format == SUMMARY_CSV)
        print_csv(rows, n, to);
    else
        TRY(print_json(rows, n, format == SUMMARY_JSONL, to));
    return end_output(to);
}

status_t summary_print_definitions(FILE *to)
{
    for (size_t i = 0; i < summary_column_count(); i++) {
        struct summary_column c = summary_column(i);
        char                  line[512];
        snprintf(line, sizeof line, "%-24s %-7s %s", c.name, c.units, c.definition);
        fprintf(to, "%s\n", line);
    }
    fputs("\nA frame is one semantic token and its codebooks: 2048 samples at 44.1 kHz, 21.533 frames a second of "
          "audio.\n"
          "Percentile p needs 1/(1 - p) samples; with fewer it is empty and `notes` says so. Samples without audio "
          "count\n"
          "as errors and enter no figure. MB = 10^6 bytes, GB = 10^9 bytes.\n",
          to);
    return end_output(to);
}
