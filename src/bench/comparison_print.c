#include "bench/comparison_print.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

/* ---- Markdown ---------------------------------------------------------------------------------------------------- */

enum { LABELS_MAX = 320 };

/* Four digits: 0.01234, 1.234, 12340. */
static const char *number(double x, char *out, size_t size)
{
    if (!isfinite(x))
        snprintf(out, size, "-");
    else if (x != 0 && (fabs(x) < 1e-3 || fabs(x) >= 1e7))
        snprintf(out, size, "%.2e", x);
    else {
        int digits = x == 0 ? 0 : 3 - (int)floor(log10(fabs(x)));
        snprintf(out, size, "%.*f", digits > 0 ? digits : 0, x);
    }
    return out;
}

static const char *percent(double x, char *out, size_t size)
{
    if (isfinite(x))
        snprintf(out, size, "%+.2f %%", 100 * x);
    else
        snprintf(out, size, "-");
    return out;
}

/* "bf16 b1 ctx0", or both labels where they are not the same. */
static const char *pair_label(const struct comparison_pair *p, char *out, size_t size)
{
    if (strcmp(p->baseline.label, p->candidate.label) == 0)
        snprintf(out, size, "%s", p->candidate.label);
    else
        snprintf(out, size, "%s -> %s", p->baseline.label, p->candidate.label);
    return out;
}

static void print_row(const struct comparison *c, const struct comparison_row *row, FILE *to)
{
    char label[LABELS_MAX], base[32], candidate[32], change[32], low[32], high[32], p[32] = "-", n[48] = "counted";
    const struct verdict *v = &row->verdict;
    if (row->metric->of_sample) {
        snprintf(n, sizeof n, "%zu / %zu", v->n, v->n_clusters);
        if (!isnan(v->p_holm))
            snprintf(p, sizeof p, v->p_holm < 1e-4 ? "< 1e-4" : "%.4f", v->p_holm);
    }
    fprintf(to, "| %s | %s, %s | %s | %s | %s | ", pair_label(&c->pairs[row->pair], label, sizeof label), row->metric->name,
            row->metric->units, number(row->baseline, base, sizeof base), number(row->candidate, candidate, sizeof candidate),
            percent(v->effect, change, sizeof change));
    if (row->metric->of_sample && isfinite(v->low))
        fprintf(to, "%s to %s", percent(v->low, low, sizeof low), percent(v->high, high, sizeof high));
    else
        fputs(row->metric->of_sample ? "-" : "exact", to);
    fprintf(to, " | %s | %s | %s |\n", p, comparison_word(row), n);
}

static bool has_quality(const struct comparison *c)
{
    for (size_t i = 0; i < c->n_pairs; i++)
        if (c->pairs[i].quality.known)
            return true;
    return false;
}

/* Gates are for weights of 8 bits against bf16; a noise floor against fp32 passes nothing. */
static bool is_gated(const struct comparison_quality *q)
{
    return strcmp(q->reference, "bf16") == 0;
}

static int gates_passed(const struct comparison_quality *q)
{
    int n = 0;
    for (int i = 0; i < QUALITY_GATES; i++)
        n += q->gates[i].passed;
    return n;
}

static void print_quality_row(const struct comparison_pair *p, FILE *to)
{
    const struct comparison_quality *q = &p->quality;
    char kl[32], low[32], high[32], nll[32], dp[32], weight[32], output[32], where[64] = "never", gates[32] = "-";
    if (q->first >= 0)
        snprintf(where, sizeof where, "frame %d (%d of %d texts)", q->first, q->diverged, q->texts);
    if (is_gated(q))
        snprintf(gates, sizeof gates, "%d of %d passed", gates_passed(q), QUALITY_GATES);
    fprintf(to, "| %s | %s | %s (%s to %s) | %.2f %% | %s | %s | %s | %s | %s | %s |\n", p->candidate.label, q->reference,
            number(q->all.kl_mean, kl, sizeof kl), number(q->all.kl_low, low, sizeof low),
            number(q->all.kl_high, high, sizeof high), 100 * q->all.top1,
            percent(q->all.nll / q->all.nll_ref - 1, nll, sizeof nll), number(q->all.rms_dp, dp, sizeof dp),
            number(q->weight_db, weight, sizeof weight), number(q->output_db, output, sizeof output), where, gates);
}

static void print_quality(const struct comparison *c, FILE *to)
{
    bool synthetic = false, gated = false;
    fputs("\n## Quality, teacher-forced\n\n"
          "| cell | against | mean KL, nat (95 %) | top-1 | NLL | RMS dp | weights, dB | outputs, dB | free run differs from | "
          "gates |\n"
          "|---|---|---|---|---|---|---|---|---|---|\n",
          to);
    for (size_t i = 0; i < c->n_pairs; i++)
        if (c->pairs[i].quality.known) {
            print_quality_row(&c->pairs[i], to);
            synthetic |= c->pairs[i].quality.synthetic;
            gated |= is_gated(&c->pairs[i].quality);
        }
    if (gated)
        fputs("\nGates: mean KL <= 2e-3 nat, top-1 >= 98.5 %, NLL change <= 0.5 %, median output SQNR >= 38 dB.\n", to);
    for (size_t i = 0; i < c->n_pairs; i++)
        for (int g = 0; g < QUALITY_GATES && is_gated(&c->pairs[i].quality) && c->pairs[i].quality.known; g++) {
            const struct quality_gate *gate = &c->pairs[i].quality.gates[g];
            char                       value[32], limit[32];
            if (!gate->passed)
                fprintf(to, "- %s: gate not passed: %s is %s, want %s %s%s%s\n", c->pairs[i].candidate.label, gate->name,
                        gate->known ? number(gate->value, value, sizeof value) : "not known", gate->at_least ? "at least" : "at most",
                        number(gate->limit, limit, sizeof limit), *gate->units ? " " : "", gate->units);
        }
    if (synthetic)
        fputs("\nThe weights are synthetic (random): these figures show the mechanism, not what a trained model loses.\n", to);
}

static void print_others(const struct comparison *c, FILE *to)
{
    size_t listed = 0;
    char   label[LABELS_MAX];
    for (size_t i = 0; i < c->n_pairs; i++) {
        const struct comparison_pair *p = &c->pairs[i];
        if (p->baseline.status == CELL_OK && p->candidate.status == CELL_OK)
            continue;
        fprintf(to, "%s- %s: baseline %s, candidate %s\n", listed++ ? "" : "\n## Not compared\n\n",
                pair_label(p, label, sizeof label), cell_status_name(p->baseline.status), cell_status_name(p->candidate.status));
    }
    for (size_t i = 0; i < c->n_unmatched; i++) {
        const struct comparison_unmatched *u = &c->unmatched[i];
        fprintf(to, "%s- %s (%.8s, %s): %s\n", listed++ ? "" : "\n## Not compared\n\n", u->cell.label, u->cell.id,
                cell_status_name(u->cell.status), u->why);
    }
    if (c->n_notes)
        fputs("\n## Notes\n\n", to);
    for (size_t i = 0; i < c->n_notes; i++)
        fprintf(to, "- %s (%.8s): %s\n", c->notes[i].cell.label, c->notes[i].cell.id, c->notes[i].text);
    for (size_t i = 0; i < c->n_pairs; i++)
        if (c->pairs[i].quality.error[0])
            fprintf(to, "- %s: quality was not measured: %s\n", c->pairs[i].candidate.label, c->pairs[i].quality.error);
}

static bool breaks_a_rule(const struct comparison_row *row, const struct comparison_caption *caption)
{
    for (size_t i = 0; i < caption->n_rules; i++)
        if (fail_rule_hits(&caption->rules[i], row))
            return true;
    return false;
}

static void print_md(const struct comparison *c, const struct comparison_caption *caption, FILE *to)
{
    if (strcmp(caption->baseline, caption->candidate) == 0)
        fprintf(to, "# %s\n\n", caption->baseline);
    else
        fprintf(to, "# %s -> %s\n\n", caption->baseline, caption->candidate);
    if (caption->axis[0])
        fprintf(to, "%s\n\n", caption->axis);
    fputs("| cell | metric | baseline | candidate | change | 95 % interval | p | verdict | n / processes |\n"
          "|---|---|--:|--:|--:|---|--:|---|--:|\n",
          to);
    for (size_t i = 0; i < c->n_rows; i++)
        print_row(c, &c->rows[i], to);
    fprintf(to, "\nChange: typical ratio of samples of the same text and repeat. Interval and p from the spread between processes; p "
                "after Holm.\nsame: the interval lies within %.3g %%; unclear: more processes would tell.\n", 100 * caption->margin);
    if (has_quality(c))
        print_quality(c, to);
    print_others(c, to);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static json_t *real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *cell_json(const struct comparison_cell *c)
{
    return json_pack("{s:s, s:s, s:s}", "id", c->id, "label", c->label, "status", cell_status_name(c->status));
}

static json_t *row_json(const struct comparison *c, const struct comparison_row *row, const struct comparison_caption *caption)
{
    const struct comparison_pair *p = &c->pairs[row->pair];
    const struct verdict         *v = &row->verdict;
    bool                          sampled = row->metric->of_sample != NULL;
    return json_pack("{s:o, s:o, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:s, s:b, s:b, s:I, s:I, s:o, s:o}",
                     "baseline_cell", cell_json(&p->baseline), "candidate_cell", cell_json(&p->candidate), "metric",
                     row->metric->name, "units", row->metric->units, "baseline", real(row->baseline), "candidate",
                     real(row->candidate), "change", real(v->effect), "low", real(v->low), "high", real(v->high),
                     "ratio_of_means", real(v->ratio_of_means), "p", sampled ? real(v->p) : json_null(), "p_holm",
                     sampled ? real(v->p_holm) : json_null(), "verdict", comparison_word(row), "paired", (int)v->paired,
                     "regression", (int)breaks_a_rule(row, caption), "n", (json_int_t)v->n, "processes",
                     (json_int_t)v->n_clusters, "within", real(v->within), "between", real(v->between));
}

static json_t *quality_json(const struct comparison_pair *p)
{
    const struct comparison_quality *q = &p->quality;
    json_t                          *gates = json_array();
    for (int i = 0; i < QUALITY_GATES && is_gated(q); i++)
        json_array_append_new(gates, json_pack("{s:s, s:o, s:f, s:s, s:b}", "name", q->gates[i].name, "value",
                                               real(q->gates[i].value), "limit", q->gates[i].limit, "want",
                                               q->gates[i].at_least ? "at least" : "at most", "passed", (int)q->gates[i].passed));
    return json_pack("{s:o, s:s, s:b, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:i, s:i, s:o, s:o}",
                     "cell", cell_json(&p->candidate), "reference", q->reference, "synthetic_weights", (int)q->synthetic,
                     "positions", q->all.n, "kl_mean", real(q->all.kl_mean), "kl_low", real(q->all.kl_low), "kl_high",
                     real(q->all.kl_high), "kl_p99", real(q->all.kl_p99), "kl_max", real(q->all.kl_max), "top1",
                     real(q->all.top1), "rms_dp", real(q->all.rms_dp), "nll", real(q->all.nll), "nll_ref", real(q->all.nll_ref),
                     "kl_mean_semantic", real(q->semantic.kl_mean), "weight_sqnr_db", real(q->weight_db), "output_sqnr_db",
                     real(q->output_db), "texts", q->texts, "texts_diverged", q->diverged, "first_diverged_frame",
                     q->first < 0 ? json_null() : json_integer(q->first), "gates", gates);
}

static json_t *unmatched_json(const struct comparison_unmatched *u)
{
    return json_pack("{s:o, s:s, s:s}", "cell", cell_json(&u->cell), "side", u->is_baseline ? "baseline" : "candidate", "why",
                     u->why);
}

static json_t *note_json(const struct comparison_note *n)
{
    return json_pack("{s:o, s:s}", "cell", cell_json(&n->cell), "text", n->text);
}

static json_t *failed_json(const struct comparison_pair *p)
{
    return json_pack("{s:o, s:o}", "baseline_cell", cell_json(&p->baseline), "candidate_cell", cell_json(&p->candidate));
}

/* Everything as one object of arrays. */
static json_t *comparison_json(const struct comparison *c, const struct comparison_caption *caption)
{
    json_t *rows = json_array(), *quality = json_array(), *failed = json_array(), *unmatched = json_array(),
           *notes = json_array();
    for (size_t i = 0; i < c->n_rows; i++)
        json_array_append_new(rows, row_json(c, &c->rows[i], caption));
    for (size_t i = 0; i < c->n_pairs; i++) {
        const struct comparison_pair *p = &c->pairs[i];
        if (p->quality.known)
            json_array_append_new(quality, quality_json(p));
        if (p->baseline.status != CELL_OK || p->candidate.status != CELL_OK)
            json_array_append_new(failed, failed_json(p));
    }
    for (size_t i = 0; i < c->n_unmatched; i++)
        json_array_append_new(unmatched, unmatched_json(&c->unmatched[i]));
    for (size_t i = 0; i < c->n_notes; i++)
        json_array_append_new(notes, note_json(&c->notes[i]));
    return json_pack("{s:s, s:s, s:s, s:f, s:o, s:o, s:o, s:o, s:o}", "baseline", caption->baseline, "candidate",
                     caption->candidate, "axis", caption->axis, "margin", caption->margin, "comparisons", rows, "quality", quality,
                     "failed", failed, "unmatched", unmatched, "notes", notes);
}

static status_t print_json(const struct comparison *c, const struct comparison_caption *caption, bool lines, FILE *to)
{
    static const char *const kinds[] = {"comparisons", "quality", "failed", "unmatched", "notes"};
    static const char *const names[] = {"comparison", "quality", "failed", "unmatched", "note"};
    json_t                  *root = comparison_json(c, caption);
    if (!root)
        return FAIL(ST_ENOMEM, "the comparison cannot be printed: no memory, or a label that is no UTF-8");
    if (!lines) {
        json_dumpf(root, to, JSON_INDENT(1) | JSON_REAL_PRECISION(15));
        fputc('\n', to);
    }
    for (int k = 0; k < 5 && lines; k++) {
        size_t  i;
        json_t *row;
        json_array_foreach(json_object_get(root, kinds[k]), i, row)
        {
            json_object_set_new(row, "kind", json_string(names[k]));
            json_dumpf(row, to, JSON_COMPACT | JSON_REAL_PRECISION(15));
            fputc('\n', to);
        }
    }
    json_decref(root);
    return ST_OK;
}

/* ---- CSV --------------------------------------------------------------------------------------------------------- */

static void csv_real(double x, FILE *to)
{
    fputc(',', to);
    if (isfinite(x))
        fprintf(to, "%.15g", x);
}

/* Ids, statuses, metrics and words hold nothing that CSV would have to quote; labels are quoted and hold no quote. */
static void print_csv(const struct comparison *c, FILE *to)
{
    fputs("baseline_id,candidate_id,baseline_label,candidate_label,metric,units,baseline,candidate,change,low,high,"
          "ratio_of_means,p,p_holm,verdict,paired,n,processes,within,between\n", to);
    for (size_t i = 0; i < c->n_rows; i++) {
        const struct comparison_row  *row = &c->rows[i];
        const struct comparison_pair *p = &c->pairs[row->pair];
        const struct verdict         *v = &row->verdict;
        fprintf(to, "%s,%s,\"%s\",\"%s\",%s,%s", p->baseline.id, p->candidate.id, p->baseline.label, p->candidate.label,
                row->metric->name, row->metric->units);
        const double reals[] = {row->baseline, row->candidate, v->effect, v->low, v->high, v->ratio_of_means, v->p, v->p_holm};
        for (size_t k = 0; k < sizeof reals / sizeof *reals; k++)
            csv_real(reals[k], to);
        fprintf(to, ",%s,%s,%zu,%zu", comparison_word(row), v->paired ? "true" : "false", v->n, v->n_clusters);
        csv_real(v->within, to);
        csv_real(v->between, to);
        fputc('\n', to);
    }
}

status_t comparison_print(const struct comparison *c, const struct comparison_caption *caption, enum summary_format format,
                          FILE *to)
{
    if (format == SUMMARY_MD)
        print_md(c, caption, to);
    else if (format == SUMMARY_CSV)
        print_csv(c, to);
    else
        TRY(print_json(c, caption, format == SUMMARY_JSONL, to));
    return fflush(to) == 0 && !ferror(to) ? ST_OK : FAIL(ST_EIO, "output: %s", strerror(errno));
}
