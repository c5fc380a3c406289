/* test_placement.c — which GPUs a rank sees, which one it gets, which cells it may run, which cores are near. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "launch/placement.h"
#include "launch/visible.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct nvml_gpu gpu(const char *uuid, const char *name, int card, double gigabytes)
{
    struct nvml_gpu g = {.card = card, .memory_bytes = (uint64_t)(gigabytes * 1e9)};
    snprintf(g.uuid, sizeof g.uuid, "%s", uuid);
    snprintf(g.name, sizeof g.name, "%s", name);
    return g;
}

/* The UUIDs that a process sees among all [n], one after another; "!" and the reason for a refusal. */
static const char *seen(const char *variable, const char *order, const struct nvml_gpu *all, int n)
{
    static char     text[1024];
    struct nvml_gpu out[16];
    char            why[256] = "";
    int             count = visible_gpus(variable, order, all, n, out, why, sizeof why);
    size_t          at = 0;
    text[0] = '\0';
    if (count < 0)
        snprintf(text, sizeof text, "!%s", why);
    for (int i = 0; i < count; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s", i ? " " : "", out[i].uuid);
    if (count == 0 && !why[0])
        fail_msg("no device and no reason for CUDA_VISIBLE_DEVICES=%s", variable);
    return text;
}

static void the_variable_is_read_as_cuda_reads_it(void **state)
{
    (void)state;
    const struct nvml_gpu all[3] = {gpu("GPU-aa1", "H200", 0, 150), gpu("GPU-aa2", "H200", 1, 150), gpu("GPU-b", "H200", 2, 150)};
    const struct {
        const char *variable, *sees;
    } cases[] = {
        {NULL, "GPU-aa1 GPU-aa2 GPU-b"}, {"2,0", "GPU-b GPU-aa1"},   {" 1 , 2 ", "GPU-aa2 GPU-b"},
        {"", ""},                        {"-1", ""},                 {"NoDevFiles", ""},
        {"1,-1,2", "GPU-aa2"},           {"GPU-b,0", "GPU-b GPU-aa1"}, {"GPU-b", "GPU-b"},
        {"gpu-b", ""},                   {"GPU-aa2", "GPU-aa2"},     {"0,", "GPU-aa1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (strcmp(seen(cases[i].variable, NULL, all, 3), cases[i].sees) != 0)
            fail_msg("CUDA_VISIBLE_DEVICES=%s: \"%s\" instead of \"%s\"", cases[i].variable,
                     seen(cases[i].variable, NULL, all, 3), cases[i].sees);
}

static void what_cannot_be_trusted_is_refused_with_the_reason(void **state)
{
    (void)state;
    const struct nvml_gpu same[2] = {gpu("GPU-aa1", "H200", 0, 150), gpu("GPU-aa2", "H200", 1, 150)};
    const struct nvml_gpu mixed[2] = {gpu("GPU-a", "H200", 0, 150), gpu("GPU-b", "A100", 1, 40)};
    assert_non_null(strstr(seen("2", NULL, same, 2), "no device 2"));
    assert_non_null(strstr(seen("0,0", NULL, same, 2), "twice"));
    assert_non_null(strstr(seen("GPU-aa", NULL, same, 2), "several"));
    assert_non_null(strstr(seen("GPU-c", NULL, same, 2), "no device"));
    assert_non_null(strstr(seen("1x", NULL, same, 2), "neither a number nor a UUID"));
    assert_non_null(strstr(seen("99999999999999999999", NULL, same, 2), "no device"));
    assert_non_null(strstr(seen("1", NULL, mixed, 2), "CUDA_DEVICE_ORDER"));
    assert_string_equal(seen("1", "PCI_BUS_ID", mixed, 2), "GPU-b");
    assert_string_equal(seen("GPU-b", NULL, mixed, 2), "GPU-b");
}

static void a_divided_card_is_its_instances(void **state)
{
    (void)state;
    const struct nvml_gpu all[3] = {gpu("MIG-1", "H 1g", 0, 10), gpu("MIG-2", "H 1g", 0, 10), gpu("GPU-b", "H 1g", 1, 80)};
    assert_string_equal(seen("0", NULL, all, 3), "MIG-1 MIG-2");
    assert_string_equal(seen("MIG-2", NULL, all, 3), "MIG-2");
    assert_string_equal(seen("1", NULL, all, 3), "GPU-b");
}

static struct rank_view view(const char *host, int n, ...)
{
    struct rank_view v = {.n = n};
    va_list          names;
    snprintf(v.host, sizeof v.host, "%s", host);
    va_start(names, n);
    for (int i = 0; i < n; i++)
        v.gpus[i] = gpu(va_arg(names, const char *), "H200", i, 150);
    va_end(names);
    return v;
}

static const char *given(const struct rank_view *views, const struct placement *p, int rank)
{
    return p->places[rank].gpu < 0 ? "" : views[rank].gpus[p->places[rank].gpu].uuid;
}

static void ranks_that_see_all_gpus_get_one_each_in_order(void **state)
{
    (void)state;
    const struct rank_view views[4] = {view("n1", 2, "a", "b"), view("n1", 2, "a", "b"), view("n2", 2, "a", "b"),
                                       view("n2", 2, "a", "b")};
    struct placement       p;
    assert_int_equal(placement_assign(views, 4, false, true, &p), ST_OK);
    for (int r = 0; r < 4; r++) {
        assert_string_equal(given(views, &p, r), r % 2 ? "b" : "a"); /* the same text on another host is another card */
        assert_int_equal(p.places[r].sharers, 1);
        assert_int_equal(p.places[r].kind, 1);
    }
    assert_int_equal(p.n_kinds, 2);
    placement_free(&p);
}

static void ranks_bound_to_one_card_each_keep_it(void **state)
{
    (void)state;
    /* Rank 0 sees both and would take "a", which is all that rank 1 sees. */
    const struct rank_view views[3] = {view("n", 2, "a", "b"), view("n", 1, "a"), view("n", 3, "a", "b", "c")};
    struct placement       p;
    assert_int_equal(placement_assign(views, 3, false, true, &p), ST_OK);
    assert_string_equal(given(views, &p, 0), "b");
    assert_string_equal(given(views, &p, 1), "a");
    assert_string_equal(given(views, &p, 2), "c");
    placement_free(&p);
}

static void a_rank_too_many_is_refused_unless_gpus_are_shared_or_not_needed(void **state)
{
    (void)state;
    const struct rank_view views[4] = {view("n", 2, "a", "b"), view("n", 2, "a", "b"), view("n", 2, "a", "b"), view("cpu", 0)};
    struct placement       p;
    assert_int_equal(placement_assign(views, 4, false, true, &p), ST_EUSAGE);
    assert_null(p.places);
    assert_int_equal(placement_assign(views, 4, false, false, &p), ST_OK);
    assert_string_equal(given(views, &p, 2), "");
    assert_int_equal(p.places[2].kind, 0);
    placement_free(&p);
    assert_int_equal(placement_assign(views, 4, true, true, &p), ST_OK);
    assert_string_equal(given(views, &p, 2), "a");
    assert_int_equal(p.places[0].sharers, 2);
    assert_int_equal(p.places[1].sharers, 1);
    assert_int_equal(p.places[2].sharers, 2);
    assert_int_equal(p.places[3].gpu, -1); /* a host without any is no mistake */
    placement_free(&p);
}

static void thousands_of_ranks_are_placed(void **state)
{
    (void)state;
    enum { RANKS = 4096, PER_HOST = 8 };
    struct rank_view *views = calloc(RANKS, sizeof *views);
    struct placement  p;
    for (int r = 0; r < RANKS; r++) {
        snprintf(views[r].host, sizeof views[r].host, "node%d", r / PER_HOST);
        views[r].n = PER_HOST;
        for (int i = 0; i < PER_HOST; i++) {
            char uuid[32];
            snprintf(uuid, sizeof uuid, "GPU-%d", (r / PER_HOST) * PER_HOST + i);
            views[r].gpus[i] = gpu(uuid, "H200", i, 150);
        }
    }
    assert_int_equal(placement_assign(views, RANKS, false, true, &p), ST_OK);
    for (int r = 0; r < RANKS; r++)
        assert_int_equal(p.places[r].gpu, r % PER_HOST);
    placement_free(&p);
    free(views);
}

static void cells_go_where_name_memory_and_model_allow(void **state)
{
    (void)state;
    struct rank_view views[3] = {view("n", 1, "a"), view("n", 1, "b"), view("n", 0)};
    views[1].gpus[0] = gpu("b", "NVIDIA A100", 1, 40);
    struct placement   p;
    struct job_options o = {.gpu_name = ""};
    struct fit_context fit = {&p, &o};
    struct cell        c;
    char               why[400];
    cell_defaults(&c);
    assert_int_equal(placement_assign(views, 3, false, true, &p), ST_OK);
    assert_int_equal(p.n_kinds, 3);
    assert_true(placement_fits(&fit, 0, &c) && placement_fits(&fit, 2, &c)); /* a CPU's cell runs anywhere */
    c.device_class = DEVICE_CUDA;
    assert_false(placement_fits(&fit, 0, &c));
    assert_true(placement_fits(&fit, 1, &c) && placement_fits(&fit, 2, &c));
    o.gpu_memory = 41000000000;
    assert_true(placement_fits(&fit, 1, &c) && !placement_fits(&fit, 2, &c));
    o.gpu_memory = 0;
    snprintf(o.gpu_name, sizeof o.gpu_name, "a100");
    assert_true(!placement_fits(&fit, 1, &c) && placement_fits(&fit, 2, &c));
    snprintf(o.gpu_name, sizeof o.gpu_name, "B300");
    placement_explain(&p, &o, &c, why, sizeof why);
    assert_non_null(strstr(why, "B300"));
    assert_non_null(strstr(why, "NVIDIA A100 with 40 GB"));
    o.gpu_name[0] = '\0';
    snprintf(c.gpu, sizeof c.gpu, "H200");
    assert_true(placement_fits(&fit, 1, &c) && !placement_fits(&fit, 2, &c));
    placement_free(&p);
}

static void cores_near_a_gpu_are_read_from_its_pci_address(void **state)
{
    (void)state;
    char dir[] = "/tmp/qsweep-sys-XXXXXX", path[256];
    assert_non_null(mkdtemp(dir));
    static const char *const folders[] = {"bus", "bus/pci", "bus/pci/devices", "bus/pci/devices/0000:2a:00.0"};
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    snprintf(path, sizeof path, "%s/bus/pci/devices/0000:2a:00.0/local_cpulist", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("2-3,8\n", f);
    fclose(f);
    static struct cores allowed = {.n = 4, .ids = {1, 3, 5, 8}}, near;
    assert_true(placement_near(dir, "00000000:2A:00.0", &allowed, &near));
    assert_int_equal(near.n, 2);
    assert_true(near.ids[0] == 3 && near.ids[1] == 8);
    allowed.n = 1; /* core 1 alone, which is far */
    assert_false(placement_near(dir, "00000000:2A:00.0", &allowed, &near));
    assert_false(placement_near(dir, "00000000:2B:00.0", &allowed, &near));
    assert_false(placement_near(dir, "../../etc", &allowed, &near));
    assert_false(placement_near(dir, "", &allowed, &near));
    unlink(path);
    for (int i = 3; i >= 0; i--) {
        snprintf(path, sizeof path, "%s/%s", dir, folders[i]);
        rmdir(path);
    }
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_variable_is_read_as_cuda_reads_it),
        cmocka_unit_test(what_cannot_be_trusted_is_refused_with_the_reason),
        cmocka_unit_test(a_divided_card_is_its_instances),
        cmocka_unit_test(ranks_that_see_all_gpus_get_one_each_in_order),
        cmocka_unit_test(ranks_bound_to_one_card_each_keep_it),
        cmocka_unit_test(a_rank_too_many_is_refused_unless_gpus_are_shared_or_not_needed),
        cmocka_unit_test(thousands_of_ranks_are_placed),
        cmocka_unit_test(cells_go_where_name_memory_and_model_allow),
        cmocka_unit_test(cores_near_a_gpu_are_read_from_its_pci_address),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
