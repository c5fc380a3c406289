/* job_help.c — the part of `qsweep help run` about job files, from the same table that reads them. */
#include "sweep/job.h"

#include "sweep/sweep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char grammar[] =
    "Job files are YAML. The smallest one:\n"
    "\n"
    "  model: checkpoints/openaudio-s1-mini\n"
    "  sweep:\n"
    "    precision: [bf16, int8]\n"
    "\n"
    "Values of an axis\n"
    "  batch: 4               one value\n"
    "  batch: [1, 2, 16]      a list; its items may be ranges\n"
    "  batch: 1..4            first..last, both included\n"
    "  batch: 1..10+3         plus a step: 1 4 7 10\n"
    "  batch: 1..64*2         times a factor: 1 2 4 8 16 32 64\n"
    "\n"
    "sweep: is the product of its axes. Inside it\n"
    "  zip: [precision, kv]   these axes advance together (several: [[a, b], [c, d]])\n"
    "  where: batch <= 8 or precision == int8\n"
    "                         only these; a list of filters must all hold. Operators: or and not,\n"
    "                         == != < <= > >=, in [a, b], + - * / %, parentheses; sizes like 8GB\n"
    "A list of such maps runs one sweep after another; what two of them ask for is measured once:\n"
    "  sweep:\n"
    "    - {precision: [bf16, int8], batch: 1..64*2}\n"
    "    - {precision: int8, kv: int8, batch: [32, 64]}\n"
    "\n"
    "Axes: what they may be, (default) and meaning; one value outside sweep: makes a constant\n";

static const char options[] =
    "\n"
    "Workload (under workload: or outside; each may be an axis too)\n"
    "%W"
    "  texts                reference (the reference benchmark's four), one text, a list of texts,\n"
    "                       {file: PATH} (one text a line), {reference: [short, medium, long, mixed]};\n"
    "                       as an axis, a list of such sets\n"
    "  stop                 {rel_ci: 0.01, min: 10, max: 200, seconds: 60}: end a text's samples when the\n"
    "                       95 % interval of the median is this narrow; without it `samples` counts\n"
    "\n"
    "The rest\n"
    "  model                folder of a checkpoint; an axis too\n"
    "  prequantized         {int8: DIR}: a copy of the model that is INT8 already\n"
    "  weights              {share: auto|none|shard|shared, recipe: torchao|torchao-v2|legacy}\n"
    "  output               folder for results (results/<name of the job file>)\n"
    "  order                interleaved (A B B A over precisions), random, given (interleaved)\n"
    "  schedule             static, dynamic: who runs which cell (static)\n"
    "  parallel             yes: cells of one CPU node, or of ranks that share a GPU, side by side (no)\n"
    "  share_gpus           yes: more ranks than GPUs on a host take turns; no: that is an error (no)\n"
    "  gpu                  {name: H200, memory: 40GB, each_model: yes}: which GPUs cuda cells may use, by part\n"
    "                       of the name and least memory; each_model: every cell once for each model of GPU\n"
    "  foreign              mark, wait, ignore: when others use the GPU, measure and mark the cell contaminated;\n"
    "                       wait, then a contaminated row without a measurement; take no notice (mark)\n"
    "  foreign_wait         seconds before that (mark: 5, wait: 600)\n"
    "  deadline             seconds a cell may take (0: the launcher's own)\n"
    "  audio                keep, drop (drop)\n"
    "\n"
    "--set key=value sets one key before anything is checked: --set workload.samples=2, --set batch=4 (pins an\n"
    "axis to one value), --set sweep.batch=[1,2], --set sweep.where= (removes it).\n";

static void print_field(FILE *to, const struct field *f, const struct cell *standard)
{
    char allowed[256], value[FIELD_TEXT_MAX];
    field_allowed(f, allowed, sizeof allowed);
    field_format(f, field_get(f, standard), value);
    bool has_auto = value_has_auto((int)(f - cell_fields));
    fprintf(to, "  %-20s %s%s (%s): %s\n", f->name, allowed, has_auto ? ", auto" : "", has_auto ? "auto" : value,
            f->help);
}

static void print_fields(FILE *to, bool workload)
{
    struct cell standard;
    cell_defaults(&standard);
    for (int i = 0; i < FIELD_COUNT; i++)
        if ((cell_fields[i].section == SECTION_WORKLOAD) == workload)
            print_field(to, &cell_fields[i], &standard);
}

status_t job_help(char **text)
{
    char       *out  = NULL;
    size_t      size = 0;
    const char *cut  = strstr(options, "%W");
    FILE       *to   = open_memstream(&out, &size);
    if (!to)
        return FAIL(ST_ENOMEM, "no memory for the help text");
    fputs(grammar, to);
    print_fields(to, false);
    fwrite(options, 1, (size_t)(cut - options), to);
    print_fields(to, true);
    fputs(cut + 2, to);
    if (fclose(to) != 0) {
        free(out);
        return FAIL(ST_ENOMEM, "no memory for the help text");
    }
    *text = out;
    return ST_OK;
}
