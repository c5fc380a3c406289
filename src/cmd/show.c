/* show.c — `qsweep show`: the summary of a sweep as a table, CSV, JSON or JSON lines. */
#include "bench/summary_print.h"
#include "cmd/command.h"
#include "cmd/guard.h"
#include "store/sweep_file.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char help_text[] =
    "usage: qsweep show SWEEP [-o md|csv|json|jsonl] [--samples]\n"
    "       qsweep show --definitions\n"
    "\n"
    "SWEEP is a merged file, or a results folder that holds sweep.h5. Every planned cell is one row, whatever\n"
    "became of it; precisions are never mixed. Numbers that were not measured, or that the sample is too small\n"
    "for, are empty (csv) or null (json); the column `notes` says why.\n"
    "\n"
    "  -o, --output FORMAT   md (default): a table 100 columns wide, differences between precisions, failures\n"
    "                        csv, json, jsonl: every column of every row\n"
    "      --samples         one row per measured sample instead (csv, json or jsonl)\n"
    "      --force           read a file that was changed since it was merged, damaged or annotated\n"
    "      --definitions     print every column with its unit and how it is computed\n"
    "\n"
    "examples\n"
    "  qsweep show results/compare\n"
    "  qsweep show sweep.h5 -o jsonl | jq 'select(.status == \"ok\") | [.precision, .frames_per_s]'\n"
    "  qsweep show sweep.h5 --samples -o csv > samples.csv\n";

/* ---- samples ----------------------------------------------------------------------------------------------------- */

static json_t *real_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *sample_to_json(const struct summary_row *row, const struct sample *s)
{
    char precision[FIELD_TEXT_MAX], hash[20], seed[24];
    int  axis = field_find("precision");
    field_format(&cell_fields[axis], row->axes[axis], precision);
    snprintf(hash, sizeof hash, "%016" PRIx64, s->codes_hash);
    snprintf(seed, sizeof seed, "%" PRIu64, s->seed); /* 64 bits do not fit in every reader's numbers */
    return json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:s, s:i, s:i, s:i, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:s}", "id",
        row->id, "label", row->label, "precision", precision, "text", s->text, "repeat", s->repeat, "process",
        s->process, "order", s->order, "seed", seed, "prompt_tokens", s->prompt_tokens, "frames", s->frames, "steps",
        s->steps, "stop", stop_reason_name((enum stop_reason)s->stop), "prefill_ms", real_or_null(s->prefill_ms),
        "decode_ms", real_or_null(s->decode_ms), "codec_ms", real_or_null(s->codec_ms), "latency_ms",
        real_or_null(s->latency_ms), "first_audio_ms", real_or_null(s->first_audio_ms), "audio_s",
        real_or_null(s->audio_s), "energy_j", real_or_null(s->energy_j), "codes_hash", hash);
}

/* The values of a flat object in their order; texts here hold no commas but in labels, which have none. */
static void put_csv(const json_t *object, bool head)
{
    const char *key, *comma = "";
    json_t     *value;
    json_object_foreach((json_t *)object, key, value)
    {
        fputs(comma, stdout);
        if (head)
            fputs(key, stdout);
        else if (json_is_string(value))
            fputs(json_string_value(value), stdout);
        else if (!json_is_null(value))
            json_dumpf(value, stdout, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
        comma = ",";
    }
    putchar('\n');
}

static status_t put_samples(const struct sweep_file *f, enum summary_format format)
{
    bool first = true;
    if (format == SUMMARY_JSON)
        puts("[");
    for (size_t i = 0; i < sweep_file_rows(f); i++) {
        struct result r;
        TRY(sweep_file_cell(f, sweep_file_row(f, i)->id, &r));
        for (size_t k = 0; k < r.n_samples; k++) {
            json_t *object = sample_to_json(sweep_file_row(f, i), &r.samples[k]);
            if (!object) {
                result_free(&r);
                return FAIL(ST_ENOMEM, "no memory for a sample of cell %s", sweep_file_row(f, i)->id);
            }
            if (format == SUMMARY_CSV) {
                if (first)
                    put_csv(object, true);
                put_csv(object, false);
            } else {
                if (format == SUMMARY_JSON && !first)
                    puts(",");
                json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(15));
                if (format == SUMMARY_JSONL)
                    putchar('\n');
            }
            first = false;
            json_decref(object);
        }
        result_free(&r);
    }
    if (format == SUMMARY_JSON)
        puts("\n]");
    return fflush(stdout) == 0 ? ST_OK : FAIL(ST_EIO, "output: %s", strerror(errno));
}

/* ---- the command ------------------------------------------------------------------------------------------------- */

struct request {
    const char *path;
    int         format; /* enum summary_format, -1 = not given */
    bool        definitions, samples, force;
};

static int show_file(void *context)
{
    const struct request *r = context;
    struct sweep_file    *f;
    status_t              st = r->force ? sweep_file_open_changed(r->path, &f) : sweep_file_open(r->path, &f);
    if (st != ST_OK)
        return status_exit(st);
    enum summary_format format = r->format < 0 ? SUMMARY_MD : (enum summary_format)r->format;
    st = r->samples ? put_samples(f, format) : summary_print(sweep_file_row(f, 0), sweep_file_rows(f), format, stdout);
    sweep_file_close(f);
    if (st == ST_OK && r->definitions) {
        putchar('\n');
        st = summary_print_definitions(stdout);
    }
    return status_exit(st);
}

static int show(int argc, char **argv)
{
    enum { OPT_DEFINITIONS = 256, OPT_SAMPLES, OPT_FORCE };
    static const struct option options[] = {{"output", required_argument, NULL, 'o'},
                                            {"definitions", no_argument, NULL, OPT_DEFINITIONS},
                                            {"samples", no_argument, NULL, OPT_SAMPLES},
                                            {"force", no_argument, NULL, OPT_FORCE},
                                            {0}};
    struct request             r = {.format = -1};
    for (int c; (c = getopt_long(argc, argv, "o:", options, NULL)) != -1;)
        switch (c) {
        case 'o':
            r.format = summary_format_parse(optarg);
            if (r.format < 0) {
                fprintf(stderr, "qsweep show: -o %s: want md, csv, json or jsonl\n", optarg);
                return 2;
            }
            break;
        case OPT_DEFINITIONS:
            r.definitions = true;
            break;
        case OPT_SAMPLES:
            r.samples = true;
            break;
        case OPT_FORCE:
            r.force = true;
            break;
        default:
            return 2;
        }
    if (r.definitions && optind == argc)
        return status_exit(summary_print_definitions(stdout));
    if (optind + 1 != argc) {
        fputs("usage: qsweep show SWEEP [-o md|csv|json|jsonl]; `qsweep help show` explains\n", stderr);
        return 2;
    }
    if (r.samples && (r.format < 0 || r.format == SUMMARY_MD)) {
        fputs("qsweep show: --samples needs -o csv, json or jsonl\n", stderr);
        return 2;
    }
    r.path = argv[optind];
    return guarded(&r.path, 1, show_file, &r);
}

const struct command command_show = {
    .name = "show",
    .summary = "the table of a sweep; csv, json, jsonl",
    .help = help_text,
    .run = show,
};
