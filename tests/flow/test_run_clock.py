#!/usr/bin/python3
"""Sweeps while the wall clock jumps, and resumes over cell files that are not what their names say."""
import os, shutil, subprocess, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from flow import *

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
/* Every look at the wall clock is up to two days off, either way. */
static void jump(struct timespec *t) { static unsigned s; if (!s) s = (unsigned)getpid(); t->tv_sec += rand_r(&s) % 345600 - 172800; }
int clock_gettime(clockid_t id, struct timespec *t)
{
    int r = (int)syscall(SYS_clock_gettime, id, t);
    if (r == 0 && id == CLOCK_REALTIME) jump(t);
    return r;
}
time_t time(time_t *out)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}
"""


def jumps(box):
    source, shim = os.path.join(box.dir, "jump.c"), os.path.join(box.dir, "jump.so")
    with open(source, "w") as f:
        f.write(SHIM)
    built = subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source], capture_output=True, text=True)
    if built.returncode:
        return skip("a wall clock that jumps changes no result", "no shim: " + built.stderr[:80])
    env = {"LD_PRELOAD": shim}
    for ranks in (0, 2):
        run = box.run(box.job("{precision: [bf16, int8], context: [0, 4, 8]}", samples=3), ranks=ranks, env=env)
        table = rows(run.output)
        where = "alone" if not ranks else "on %d ranks" % ranks
        check("a wall clock that jumps by days ends no sweep and no worker (%s)" % where,
              run.rc == 0 and [r["status"] for r in table] == ["ok"] * 6, run.err)
        check("and no duration has seen it (%s)" % where,
              all(0 < r["latency_mean_s"] < 60 and 0 < r["total_s"] < 60 for r in table)
              and all(0 <= e.get("seconds", 0) < 60 and 0 <= e["t_s"] < 120 for e in events(run.output)), table)
        starts = [e["time"] for e in events(run.output)]
        check("though the clock did jump (%s)" % where, starts != sorted(starts), starts)
        before = cell_files(run.output)
        again = box.run(box.job("{precision: [bf16, int8], context: [0, 4, 8]}", samples=3), "--resume", output=run.output, env=env)
        check("a resume under it measures nothing twice (%s)" % where, again.rc == 0 and cell_files(run.output) == before, again.err)


def strangers(box):
    """Each of six cell files becomes something else that could lie under its name."""
    job = box.job("{precision: [bf16, int8], context: [0, 4, 8, 12]}")
    run = box.run(job)
    sweep = open(run.output + "/sweep.h5", "rb").read()
    paths = [p for p in sorted(os.path.join(d, f) for d, _, fs in os.walk(run.output + "/cells") for f in fs)]
    whole = [open(p, "rb").read() for p in paths]
    spared = cell_files(run.output)
    changed = {
        0: sweep,                                                  # a file of another schema
        1: whole[1].replace(b"qsweep-cell", b"qsweep-call"),       # of a schema nobody knows
        2: whole[2][:len(whole[2]) // 2],                          # cut short
        3: whole[4],                                               # another cell's
        4: whole[4][:-100] + bytes(b ^ 255 for b in whole[4][-100:]), # its end is not what was written
        5: b"",
    }
    for i, content in changed.items():
        with open(paths[i], "wb") as f:
            f.write(content)
    merged = subprocess.run([QSWEEP, "merge", run.output, "--fresh"], capture_output=True, text=True)
    table = {r["id"]: r["status"] for r in rows(run.output)}
    names = [os.path.basename(p)[5:-3] for p in paths]
    check("a merge keeps a row for each of eight cells, the two whole ones ok, none of the others",
          merged.returncode == 0 and len(table) == 8 and {n for n in names if table.get(n) == "ok"} == {names[6], names[7]},
          (merged.stderr, table))
    again = box.run(job, "--resume", output=run.output)
    now = cell_files(run.output)
    check("a resume measures exactly the six again, and all are ok",
          again.rc == 0 and statuses(run.output) == ["ok"] * 8
          and {n for n in names if now[n] == spared[n]} == {names[6], names[7]}, again.err)


with Sandbox() as box:
    jumps(box)
    strangers(box)
done()
