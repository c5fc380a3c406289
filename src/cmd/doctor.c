/* doctor.c — `qsweep doctor`: what keeps this machine from measuring, and the command that helps. */
#include "cmd/checkup.h"
#include "cmd/command.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help_text[] =
    "usage: qsweep doctor [--device any|cpu|cuda] [--ranks] [--model DIR] [--output DIR] [-o text|json]\n"
    "\n"
    "Looks at everything that a measurement on this machine depends on, and says for each thing what was\n"
    "seen and the command that helps: processor, clock and limits; the NVIDIA driver, every card, who\n"
    "uses it, and whether this program has code for it; cuBLAS and NCCL; disk, file locks and shared\n"
    "memory; Open MPI, Slurm, audio libraries and the Python of the report. It changes nothing and ends\n"
    "no process; it writes and removes one small file where results would go.\n"
    "\n"
    "  ok      fine\n"
    "  warn    works, but slower, noisier or with a part missing\n"
    "  fail    needed for what was asked, and does not work: exit status 1\n"
    "  absent  not here and not needed\n"
    "\n"
    "  --device any|cpu|cuda   default any: GPUs are looked at but not needed; cuda: they are needed\n"
    "  --ranks                 Open MPI is needed, as for `qsweep run --ranks N`\n"
    "  --model DIR             also open this checkpoint and compare its size with memory\n"
    "  --output DIR            where results would go (default results); it need not exist\n"
    "  -o text|json            default text\n"
    "\n"
    "examples\n"
    "  qsweep doctor\n"
    "  qsweep doctor --device cuda --model checkpoints/openaudio-s1-mini\n"
    "  qsweep doctor -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"counts\"])'\n";

enum { OPT_DEVICE = 256, OPT_RANKS, OPT_MODEL, OPT_OUTPUT };

/* The sum of the findings as the exit status has it. */
static int print_text(const struct checkup *c, const int counts[FOUND_COUNT])
{
    for (int i = 0; i < c->n; i++) {
        const struct finding *f = &c->all[i];
        printf("%-7s %-17s %s\n", found_name(f->word), f->name, f->seen);
        if (f->remedy[0])
            printf("%-7s %-17s -> %s\n", "", "", f->remedy);
    }
    printf("%d ok, %d warn, %d fail, %d absent\n", counts[FOUND_OK], counts[FOUND_WARN], counts[FOUND_FAIL],
           counts[FOUND_ABSENT]);
    return ferror(stdout);
}

/* What the system said may be bytes of any kind; JSON wants UTF-8. */
static json_t *text(const char *s)
{
    json_t *j = json_string(s);
    return j ? j : json_string("(not UTF-8)");
}

static int print_json(const struct checkup *c, const int counts[FOUND_COUNT])
{
    json_t *list = json_array(), *sums = json_object();
    for (int i = 0; i < c->n; i++) {
        const struct finding *f = &c->all[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:o, s:o}", "name", f->name, "status", found_name(f->word), "seen",
                                        text(f->seen), "remedy", f->remedy[0] ? text(f->remedy) : json_null()));
    }
    for (int w = 0; w < FOUND_COUNT; w++)
        json_object_set_new(sums, found_name((enum verdict_word)w), json_integer(counts[w]));
    json_t *root = json_pack("{s:b, s:o, s:o}", "healthy", counts[FOUND_FAIL] == 0, "counts", sums, "checks", list);
    int     bad = !root || json_dumpf(root, stdout, JSON_INDENT(2)) != 0 || putchar('\n') == EOF;
    json_decref(root);
    return bad;
}

static status_t parse(int argc, char **argv, struct wish *wish, bool *json)
{
    static const struct option options[] = {{"device", required_argument, NULL, OPT_DEVICE},
                                            {"ranks", no_argument, NULL, OPT_RANKS},
                                            {"model", required_argument, NULL, OPT_MODEL},
                                            {"output", required_argument, NULL, OPT_OUTPUT},
                                            {0}};
    for (int o; (o = getopt_long(argc, argv, "o:", options, NULL)) != -1;) {
        switch (o) {
        case OPT_DEVICE:
            if (strcmp(optarg, "any") != 0 && strcmp(optarg, "cpu") != 0 && strcmp(optarg, "cuda") != 0)
                return FAIL(ST_EUSAGE, "--device %.40s: want any, cpu or cuda", optarg);
            wish->gpu = strcmp(optarg, "cuda") == 0;
            break;
        case OPT_RANKS:
            wish->ranks = true;
            break;
        case OPT_MODEL:
            wish->model = optarg;
            break;
        case OPT_OUTPUT:
            wish->output = optarg;
            break;
        case 'o':
            if (strcmp(optarg, "json") != 0 && strcmp(optarg, "text") != 0)
                return FAIL(ST_EUSAGE, "-o %.40s: want text or json", optarg);
            *json = strcmp(optarg, "json") == 0;
            break;
        default:
            return FAIL(ST_EUSAGE, "`qsweep help doctor` lists the options");
        }
    }
    if (optind != argc)
        return FAIL(ST_EUSAGE, "doctor takes no \"%.100s\"; `qsweep help doctor`", argv[optind]);
    return ST_OK;
}

static int run(int argc, char **argv)
{
    struct wish wish = {.output = "results"};
    bool        json = false;
    int         counts[FOUND_COUNT] = {0};
    status_t    st = parse(argc, argv, &wish, &json);
    if (st != ST_OK)
        return status_exit(st);
    struct checkup *c = calloc(1, sizeof *c);
    if (!c)
        return status_exit(FAIL(ST_ENOMEM, "no memory for the findings"));
    checkup_cpu(c);
    checkup_model(c, &wish);
    checkup_gpu(c, &wish);
    checkup_storage(c, &wish);
    checkup_software(c, &wish);
    for (int i = 0; i < c->n; i++)
        counts[c->all[i].word]++;
    int bad = json ? print_json(c, counts) : print_text(c, counts);
    free(c);
    if (bad || fflush(stdout) != 0)
        return status_exit(FAIL(ST_EIO, "standard output: %s", strerror(errno)));
    return counts[FOUND_FAIL] > 0;
}

const struct command command_doctor = {
    .name = "doctor", .summary = "what is missing here, and the command that fixes it", .help = help_text, .run = run};
