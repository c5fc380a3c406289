/* result.h — everything one cell measured, as plain columns; bench fills it, store writes and reads it. */
#ifndef QSWEEP_BENCH_RESULT_H
#define QSWEEP_BENCH_RESULT_H

#include "backend/memory.h"
#include "sweep/cell.h"

#include <stddef.h>
#include <stdint.h>

/* Phases of a worker, in order; the trace marks them. */
enum phase { PHASE_CONTEXT, PHASE_LOAD, PHASE_READY, PHASE_WARMUP, PHASE_MEASURE, PHASE_DONE, PHASE_COUNT };
const char *phase_name(enum phase p);

/* Why a sample ended. */
enum stop_reason { STOP_LENGTH, STOP_IM_END, STOP_CACHE_FULL, STOP_COUNT };
const char *stop_reason_name(enum stop_reason s); /* "length", "im_end", "cache_full" */

/* One row a sample (a request of one text, `batch` utterances decoded together). */
struct sample {
    int      text, repeat, process;  /* indices                                                    */
    uint64_t seed;
    int      order;                  /* position in the order in which samples really ran          */
    int      prompt_tokens;          /* columns of one prompt                                      */
    int      frames;                 /* over the batch, im_end frames included                     */
    int      stop;                   /* enum stop_reason                                           */
    double   prefill_ms, decode_ms, codec_ms, latency_ms; /* latency = the whole request           */
    double   first_audio_ms;         /* NaN when not measured                                      */
    double   audio_s;                /* (frames − im_end frames)·2048/44100, or the codec's output */
    double   energy_j;               /* NaN where there is no counter                              */
    double   sm_clock_mhz;           /* mean over the sample, NaN on a CPU                         */
    uint64_t throttle;               /* OR of NVML reasons seen                                    */
    uint64_t codes_hash;             /* XXH3-64 of all frames: same codes, same hash               */
    int64_t  t0_ns;                  /* start, CLOCK_MONOTONIC                                     */
    size_t   step_offset;            /* first of its steps in step_ms                              */
    int      steps;
};

/* One row a trace tick. Missing values are NaN or UINT64_MAX as noted. */
struct trace_point {
    int64_t  t_ns;            /* since the worker's start            */
    uint64_t device_used;     /* bytes, UINT64_MAX when unknown (CPU) */
    uint64_t process_used;    /* NVML per process, or RSS on the CPU  */
    uint64_t pss;             /* CPU: proportional set, UINT64_MAX else */
    uint64_t arena;           /* our allocator's bytes               */
    int      phase;
    double   sm_clock_mhz, mem_clock_mhz, power_mw, temperature_c; /* NaN when unknown or not sampled this tick */
    uint64_t throttle;
};

/* A key and its text or number for the provenance group: host, cpu, gpu_name, gpu_uuid, driver, git, command, …
 * The summary reads "gpu_name", else "cpu_model" (device_name), and "prequantized" ("true" when the weights were read
 * already quantized). */
struct fact {
    char *key, *value;
};

/* Quality figures; present only when measured (bench/quality.h has the definitions). NaN where n does not carry one. */
struct quality_row {
    int    codebook;                       /* 0 = semantic, QUALITY_ALL = every codebook counted alike   */
    int    n;                              /* positions compared                                        */
    double kl_mean, kl_p99, kl_max, top1, rms_dp, nll, nll_ref;
    double kl_low, kl_high;                /* 95 % interval of kl_mean                                  */
    double nll_low, nll_high;              /* 95 % interval of nll − nll_ref                            */
};
enum { QUALITY_ALL = -1 };
/* One row a text: where decoding freely under the same noise first differs from the reference. */
struct quality_text {
    int text, frames;
    int diverged; /* first frame that differs, −1 = none of `frames` */
};
/* One row a linear layer that is stored differently in the two precisions. */
struct quality_linear {
    char   name[64];
    int    products;                       /* outputs compared: vectors                                 */
    double weight_sqnr_db, output_sqnr_db; /* signal to quantization noise                              */
};

struct result {
    struct cell      cell;
    enum cell_status status;
    char            *reason;       /* "" when ok                                                    */
    int              exit_code, signal;
    struct sample   *samples;      size_t n_samples;
    double          *step_ms;      size_t n_steps;   /* every measured decode step, in sample order */
    struct trace_point *trace;     size_t n_trace;
    struct fact     *facts;        size_t n_facts;
    size_t           memory_ready[MEM_CLASS_COUNT], memory_peak[MEM_CLASS_COUNT]; /* bytes by class  */
    uint64_t         baseline_bytes, peak_bytes;     /* headline VRAM figures (definition: design); UINT64_MAX = never reached */
    uint64_t         process_ready, process_peak, device_ready, device_peak; /* UINT64_MAX = unknown */
    double           load_s, warmup_s, total_s;      /* phases; NaN = never finished                */
    double           first_frame_s;                  /* exec of the worker to the first frame       */
    double           step_bytes;                     /* mean fewest bytes a step moves              */
    double           nucleus;                        /* mean entries in the slow nucleus, NaN = not counted */
    char             engine[16];                     /* what really ran                             */
    struct quality_row *quality;   size_t n_quality;
    struct quality_text *quality_texts;     size_t n_quality_texts;
    struct quality_linear *quality_linears; size_t n_quality_linears;
    char            *log;                            /* stderr tail of the worker                   */
    char             host[64];
    int              rank, attempt;
    int64_t          started_ns;                     /* wall clock, ns since the epoch              */
};

/* Nothing measured yet: status pending, every figure unknown (NaN, UINT64_MAX), texts NULL (read as ""). */
void result_init(struct result *r);
void result_free(struct result *r); /* back to result_init's state */

/* Replace a text; NULL means "". */
status_t result_set_reason(struct result *r, const char *text);
status_t result_set_log(struct result *r, const char *text);

/* A fact whose key is already there replaces it. Keys: 1–200 bytes. */
status_t    result_add_fact(struct result *r, const char *key, const char *value);
const char *result_fact(const struct result *r, const char *key); /* NULL when there is none */

/* Append a copy of *s and its s->steps step times; step_offset of the copy is set here. */
status_t result_add_sample(struct result *r, const struct sample *s, const double *step_ms);
status_t result_add_trace(struct result *r, const struct trace_point *points, size_t n);
/* Elements that an array of n must have room for: whoever fills the arrays of a result directly allocates this many. */
size_t result_room(size_t n);

#endif
