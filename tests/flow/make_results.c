/* make_results.c — fills a folder with cell files of invented numbers, for tests of merge, show, export and the report.
 *
 * usage: make_results DIR CELLS SEED [SAMPLES]     Only tests run this: nothing in the program invents a measurement.
 * Cells vary in precision and batch; of every nine, one is out of memory and one has crashed. Prints one id a line. */
#include "../unit/random_result.h"

#include "store/cell_file.h"

static status_t invent(uint64_t *seed, int i, int samples, struct result *r)
{
    TRY(random_result(seed, samples, r));
    r->cell.precision = i % 2 ? PRECISION_INT8 : PRECISION_BF16;
    r->cell.recipe = i % 2 ? RECIPE_TORCHAO : RECIPE_NONE;
    r->cell.kv = KV_BF16;
    r->cell.batch = 1 + i / 2;
    memset(r->cell.fingerprint, 'a', 32);
    r->cell.context = 0;
    r->cell.sampling.seed = 42;
    TRY(cell_identify(&r->cell));
    double speed = i % 2 ? 1.7 : 1.0;
    for (size_t k = 0; k < r->n_steps; k++)
        r->step_ms[k] = (20 + random_real(seed, 0, 2)) / speed;
    for (size_t k = 0; k < r->n_samples; k++) {
        struct sample *s = &r->samples[k];
        s->decode_ms = 0;
        for (int j = 0; j < s->steps; j++)
            s->decode_ms += r->step_ms[s->step_offset + (size_t)j];
        s->latency_ms = s->prefill_ms + s->decode_ms;
        s->audio_s = s->frames * 2048.0 / 44100;
        s->codec_ms = 0;
    }
    r->memory_ready[MEM_WEIGHTS] = i % 2 ? 912000000 : 1720000000;
    r->baseline_bytes = r->memory_ready[MEM_WEIGHTS] + 125000000;
    r->peak_bytes = r->baseline_bytes + 40000000;
    if (i % 9 == 7 || i % 9 == 8) {
        r->status = i % 9 == 7 ? CELL_OOM : CELL_CRASHED;
        r->n_samples = r->n_steps = 0;
        TRY(result_set_reason(r, i % 9 == 7 ? "needs 12.4 GB, the limit is 8.0 GB" : "worker ended with signal 11"));
        r->signal = i % 9 == 7 ? 0 : 11;
    }
    return ST_OK;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: make_results DIR CELLS SEED [SAMPLES]\n");
        return 2;
    }
    uint64_t seed = strtoull(argv[3], NULL, 0);
    for (int i = 0; i < atoi(argv[2]); i++) {
        struct result r;
        char          path[4400];
        if (invent(&seed, i, argc > 4 ? atoi(argv[4]) : 8, &r) != ST_OK)
            return 1;
        cell_file_path(argv[1], r.cell.id, path, sizeof path);
        if (cell_file_write(path, &r) != ST_OK)
            return 1;
        puts(r.cell.id);
        result_free(&r);
    }
    return 0;
}
