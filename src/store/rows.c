#include "store/rows.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const struct column sample_columns[] = {
    COLUMN(sample, text, "text", M_INT, "1", "index of the text"),
    COLUMN(sample, repeat, "repeat", M_INT, "1", "repeat of the text"),
    COLUMN(sample, process, "process", M_INT, "1", "index of the fresh process"),
    COLUMN(sample, seed, "seed", M_U64, "1", "seed of the sampler's noise"),
    COLUMN(sample, order, "order", M_INT, "1", "position in the order in which samples ran"),
    COLUMN(sample, prompt_tokens, "prompt_tokens", M_INT, "1", "columns of one prompt"),
    COLUMN(sample, frames, "frames", M_INT, "1", "frames decoded over the batch, im_end frames included"),
    CODES(sample, stop, "stop", "why the sample ended", "length im_end cache_full"),
    COLUMN(sample, prefill_ms, "prefill_ms", M_F64, "ms", "time of the prefill"),
    COLUMN(sample, decode_ms, "decode_ms", M_F64, "ms", "time of all decode steps"),
    COLUMN(sample, codec_ms, "codec_ms", M_F64, "ms", "time of the codec"),
    COLUMN(sample, latency_ms, "latency_ms", M_F64, "ms", "time of the whole request"),
    COLUMN(sample, first_audio_ms, "first_audio_ms", M_F64, "ms", "time to the first audio, NaN when not measured"),
    COLUMN(sample, audio_s, "audio_s", M_F64, "s", "audio produced over the batch"),
    COLUMN(sample, energy_j, "energy_j", M_F64, "J", "energy of the device, NaN without a counter"),
    COLUMN(sample, sm_clock_mhz, "sm_clock_mhz", M_F64, "MHz", "mean SM clock, NaN when unknown"),
    COLUMN(sample, throttle, "throttle", M_U64, "1", "OR of the NVML clock event reasons seen"),
    COLUMN(sample, codes_hash, "codes_hash", M_U64, "1", "XXH3-64 of all frames"),
    COLUMN(sample, t0_ns, "t0_ns", M_I64, "ns", "start, monotonic clock of the host"),
    COLUMN(sample, steps, "steps", M_INT, "1", "rows of frames/step_ms"),
};
static const struct column trace_columns[] = {
    COLUMN(trace_point, t_ns, "t_ns", M_I64, "ns", "time since the worker's start"),
    COLUMN(trace_point, device_used, "device_used_bytes", M_BYTES, "byte",
           "memory used on the device, NaN when unknown"),
    COLUMN(trace_point, process_used, "process_used_bytes", M_BYTES, "byte",
           "memory of the process on the device (NVML) or its RSS (CPU), NaN when unknown"),
    COLUMN(trace_point, pss, "pss_bytes", M_BYTES, "byte",
           "proportional set size of the process (CPU), NaN when unknown"),
    COLUMN(trace_point, arena, "arena_bytes", M_BYTES, "byte", "bytes of our own allocator"),
    CODES(trace_point, phase, "phase", "phase of the worker", "context load ready warmup measure done"),
    COLUMN(trace_point, sm_clock_mhz, "sm_clock_mhz", M_F64, "MHz", "SM clock, NaN when not sampled"),
    COLUMN(trace_point, mem_clock_mhz, "mem_clock_mhz", M_F64, "MHz", "memory clock, NaN when not sampled"),
    COLUMN(trace_point, power_mw, "power_mw", M_F64, "mW", "power draw, NaN when not sampled"),
    COLUMN(trace_point, temperature_c, "temperature_c", M_F64, "degC", "temperature, NaN when not sampled"),
    COLUMN(trace_point, throttle, "throttle", M_U64, "1", "NVML clock event reasons"),
};
static const struct column quality_columns[] = {
    COLUMN(quality_row, codebook, "codebook", M_INT, "1",
           "0 is the semantic token, c the residual codebook c, -1 all alike"),
    COLUMN(quality_row, n, "n", M_INT, "1", "positions compared"),
    COLUMN(quality_row, kl_mean, "kl_mean", M_F64, "1", "mean KL divergence from the reference precision, nat"),
    COLUMN(quality_row, kl_p99, "kl_p99", M_F64, "1", "99th percentile of the KL divergence, nat"),
    COLUMN(quality_row, kl_max, "kl_max", M_F64, "1", "largest KL divergence, nat"),
    COLUMN(quality_row, top1, "top1", M_F64, "1", "share of positions with the reference's most likely token"),
    COLUMN(quality_row, rms_dp, "rms_dp", M_F64, "1", "RMS change of the probability of the reference's token"),
    COLUMN(quality_row, nll, "nll", M_F64, "1", "negative log likelihood, nat per token"),
    COLUMN(quality_row, nll_ref, "nll_ref", M_F64, "1", "the same of the reference precision"),
    COLUMN(quality_row, kl_low, "kl_low", M_F64, "1", "lower end of the 95 % interval of kl_mean, nat"),
    COLUMN(quality_row, kl_high, "kl_high", M_F64, "1", "upper end of the 95 % interval of kl_mean, nat"),
    COLUMN(quality_row, nll_low, "nll_low", M_F64, "1", "lower end of the 95 % interval of nll - nll_ref, nat"),
    COLUMN(quality_row, nll_high, "nll_high", M_F64, "1", "upper end of the 95 % interval of nll - nll_ref, nat"),
};
static const struct column quality_text_columns[] = {
    COLUMN(quality_text, text, "text", M_INT, "1", "index of the text"),
    COLUMN(quality_text, frames, "frames", M_INT, "1", "frames decoded by the reference precision"),
    COLUMN(quality_text, diverged, "diverged", M_INT, "1",
           "first frame that differs when decoding freely under the same noise, -1 when none does"),
};
static const struct column quality_linear_columns[] = {
    COLUMN(quality_linear, products, "products", M_INT, "1", "output vectors compared"),
    COLUMN(quality_linear, weight_sqnr_db, "weight_sqnr_db", M_F64, "1",
           "ratio of weights to their quantization error, dB, NaN when there is none"),
    COLUMN(quality_linear, output_sqnr_db, "output_sqnr_db", M_F64, "1",
           "ratio of outputs to their difference for the same inputs, dB, NaN when there is none"),
};
#define ROWS(group, type, columns, signal, axes)                                                                       \
    {                                                                                                                  \
        group, sizeof(struct type), columns, sizeof columns / sizeof *columns, signal, axes                            \
    }
const struct row_kind sample_rows = ROWS("samples", sample, sample_columns, "latency_ms", "order");
const struct row_kind trace_rows = ROWS("trace", trace_point, trace_columns, "arena_bytes", "t_ns");
const struct row_kind quality_rows = ROWS("quality", quality_row, quality_columns, NULL, NULL);
const struct row_kind quality_text_rows = ROWS("quality_texts", quality_text, quality_text_columns, NULL, NULL);
const struct row_kind quality_linear_rows = ROWS("quality_linears", quality_linear, quality_linear_columns, NULL, NULL);

static enum h5_kind file_kind(enum member m)
{
    return m == M_INT ? H5_I32 : m == M_I64 ? H5_I64 : m == M_U64 || m == M_SIZE ? H5_U64 : H5_F64;
}

static void gather(const struct column *c, const char *rows, size_t row_size, size_t n, void *out)
{
    for (size_t i = 0; i < n; i++) {
        const char *at = rows + i * row_size + c->offset;
        if (c->member == M_INT)
            memcpy((int32_t *)out + i, at, sizeof(int32_t));
        else if (c->member == M_BYTES) {
            uint64_t bytes;
            memcpy(&bytes, at, sizeof bytes);
            ((double *)out)[i] = bytes == UINT64_MAX ? NAN : (double)bytes;
        } else
            memcpy((int64_t *)out + i, at, sizeof(int64_t));
    }
}

static uint64_t bytes_of(double value)
{
    return value >= 0 && value < 0x1p63 ? (uint64_t)value : UINT64_MAX;
}

static void scatter(const struct column *c, const void *in, size_t n, char *rows, size_t row_size)
{
    for (size_t i = 0; i < n; i++) {
        char *at = rows + i * row_size + c->offset;
        if (c->member == M_INT)
            memcpy(at, (const int32_t *)in + i, sizeof(int32_t));
        else if (c->member == M_BYTES) {
            uint64_t bytes = bytes_of(((const double *)in)[i]);
            memcpy(at, &bytes, sizeof bytes);
        } else
            memcpy(at, (const int64_t *)in + i, sizeof(int64_t));
    }
}

/* The value of a column that a file does not have: unknown where the kind can say so, else 0. */
static void fill_unknown(const struct column *c, size_t n, void *out)
{
    for (size_t i = 0; i < n; i++)
        if (c->member == M_INT)
            ((int32_t *)out)[i] = 0;
        else if (c->member == M_F64 || c->member == M_BYTES)
            ((double *)out)[i] = NAN;
        else
            ((int64_t *)out)[i] = 0;
}

status_t rows_write(hid_t cell, const struct row_kind *kind, const void *rows, size_t n)
{
    if (n == 0)
        return ST_OK;
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID;
    void    *scratch = malloc(n * 8);
    if (!scratch)
        return FAIL(ST_ENOMEM, "%s: no memory for a column of %zu rows", h5_label(), n);
    TRY_OUT(h5_make_group(cell, kind->group, &group));
    if (kind->signal) {
        TRY_OUT(h5_put_text(group, "NX_class", "NXdata"));
        TRY_OUT(h5_put_text(group, "signal", kind->signal));
        TRY_OUT(h5_put_text(group, "axes", kind->axes));
    }
    for (size_t i = 0; i < kind->n_columns; i++) {
        const struct column *c = &kind->columns[i];
        gather(c, rows, kind->row_size, n, scratch);
        TRY_OUT(h5_put_column(group, c->name, file_kind(c->member), scratch, n, c->units, c->long_name, c->meanings));
    }
out:
    free(scratch);
    h5_close(group);
    return st;
}

/* Rows of a group are counted by its first column, which every version has. *rows is malloc'ed with n rows, zeroed. */
status_t rows_read(hid_t cell, const struct row_kind *kind, bool (*wanted)(const char *), void **rows, size_t *n)
{
    status_t st = ST_OK;
    hid_t    group = H5I_INVALID_HID;
    void    *scratch = NULL, *made = NULL;
    size_t   count = 0;
    bool     found = false;
    TRY(h5_find_group(cell, kind->group, &group));
    if (group < 0)
        return ST_OK;
    TRY_OUT(h5_column_rows(group, kind->columns[0].name, &count, &found));
    if (!found)
        st = FAIL(ST_EINPUT, "%s: group \"%s\" has no column \"%s\"", h5_label(), kind->group, kind->columns[0].name);
    if (st != ST_OK || count == 0)
        goto out;
    scratch = malloc(count * 8);
    made = calloc(result_room(count), kind->row_size);
    if (!scratch || !made) {
        st = FAIL(ST_ENOMEM, "%s: no memory for %zu rows of \"%s\"", h5_label(), count, kind->group);
        goto out;
    }
    for (size_t i = 0; i < kind->n_columns; i++) {
        const struct column *c = &kind->columns[i];
        found = false;
        if (!wanted || wanted(c->name))
            TRY_OUT(h5_get_column(group, c->name, file_kind(c->member), scratch, count, &found));
        if (!found)
            fill_unknown(c, count, scratch);
        scatter(c, scratch, count, made, kind->row_size);
    }
    *rows = made;
    *n = count;
    made = NULL;
out:
    free(made);
    free(scratch);
    h5_close(group);
    return st;
}

status_t scalars_write(hid_t group, const struct column *columns, size_t n, const struct result *r)
{
    for (size_t i = 0; i < n; i++) {
        double value;
        gather(&columns[i], (const char *)r, sizeof *r, 1, &value);
        TRY(h5_put_real(group, columns[i].name, value));
    }
    return ST_OK;
}

status_t scalars_read(hid_t group, const struct column *columns, size_t n, struct result *r)
{
    for (size_t i = 0; i < n; i++) {
        double value = NAN;
        bool   found;
        TRY(h5_get_real(group, columns[i].name, &value, &found));
        scatter(&columns[i], &value, 1, (char *)r, sizeof *r);
    }
    return ST_OK;
}
