#!/usr/bin/python3
"""fleet.py — what a large sweep costs besides its measurements: planning, merging, ranks, hand-out. `make bench-fleet`.

Environment: CELLS (files to merge, 10000), RANKS (64) and RUN_CELLS (512) of the oversubscribed sweep. Everything lies
below build/bench-fleet and is removed at the end. Nothing here is a test: it prints what it saw."""
import json, os, shutil, statistics, subprocess, sys, tempfile, time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "flow"))
from flow import *

CELLS, RANKS, RUN_CELLS = (int(os.environ.get(k, d)) for k, d in (("CELLS", 10000), ("RANKS", 64), ("RUN_CELLS", 512)))


def measured(*command, **kw):
    """Wall seconds, peak resident MB and standard output of a command."""
    t0 = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, **kw)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - t0
        out.seek(0)
        text = out.read()
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        sys.exit("bench-fleet: %s ended with status %d" % (" ".join(command), os.waitstatus_to_exitcode(status)))
    return wall, usage.ru_maxrss / 1024, text


def row(what, value):
    print("| %-66s | %22s |" % (what, value), flush=True)


def planning(box):
    job = box.job("{precision: [bf16, int8], context: 0..49999}")
    wall, rss, ids = measured(QSWEEP, "run", job, "--dry-run", "-o", "ids")
    row("plan %d cells, the whole command" % len(ids.split()), "%.2f s, %.0f MB" % (wall, rss))


def merging(place):
    folder = os.path.join(place, "merge")
    make = os.path.join(BUILD, "tests", "flow", "make_results")
    wall, _, ids = measured(make, folder, str(CELLS), "1", "1")
    files = [os.path.join(d, f) for d, _, names in os.walk(folder) for f in names if f.endswith(".h5")]
    size = sum(os.path.getsize(f) for f in files)
    row("write %d cell files of %.0f kB" % (len(files), size / len(files) / 1e3), "%.2f ms a file" % (wall / len(files) * 1e3))
    out = os.path.join(folder, "sweep.h5")
    kept = files[:len(files) // 100]
    for f in kept:
        os.rename(f, f + ".later")
    wall, rss, _ = measured(QSWEEP, "merge", folder, "-o", out)
    n = len(files) - len(kept)
    row("merge %d of them" % n, "%.2f ms a file, %.0f MB" % (wall / n * 1e3, rss))
    wall, rss, _ = measured(QSWEEP, "merge", folder, "-o", out)
    row("merge again, nothing new", "%.2f s, %.0f MB" % (wall, rss))
    for f in kept:
        os.rename(f + ".later", f)
    wall, rss, _ = measured(QSWEEP, "merge", folder, "-o", out)
    row("merge again, %d new files" % len(kept), "%.2f s, %.0f MB" % (wall, rss))
    row("the merged file", "%.0f MB" % (os.path.getsize(out) / 1e6))


def ranks(box, schedule):
    job = box.job("{precision: [bf16, int8], context: 1..%d}" % (RUN_CELLS // 2), 'schedule: %s' % schedule, samples=1,
                  max_new_tokens=1, texts='["One text."]')
    t0 = time.monotonic()
    run = box.run(job, ranks=RANKS, env={"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,vader,tcp"})
    wall = time.monotonic() - t0
    table = statuses(run.output)
    if run.rc or table.count("ok") != RUN_CELLS:
        sys.exit("bench-fleet: the sweep on %d ranks ended with %s: %s" % (RANKS, run.rc, run.err[-2000:]))
    told = events(run.output)
    first, last = (next(e for e in order if e["event"] in ("start", "cell")) for order in (told, told[::-1]))
    lives = sum(e["seconds"] for e in told if e["event"] == "cell")
    row("%d tiny cells on %d ranks of one host, %s" % (RUN_CELLS, RANKS, schedule), "%.1f s, all ok" % wall)
    row("  from the first worker's start to the last cell", "%.1f s" % (last["t_s"] - first["t_s"]))
    row("  of that not spent in workers", "%.1f ms a cell" % ((last["t_s"] - first["t_s"] - lives) / RUN_CELLS * 1e3))


def one_rank(box):
    job = box.job("{precision: [bf16, int8], context: 1..50}", samples=1, max_new_tokens=1, texts='["One text."]')
    run = box.run(job)
    told = events(run.output)
    gaps = [b["t_s"] - a["t_s"] for a, b in zip(told, told[1:]) if (a["event"], b["event"]) == ("cell", "start")]
    row("one rank: from a cell's record to the next worker's start, median", "%.2f ms" % (statistics.median(gaps) * 1e3))


def simulation(box):
    model = os.path.join(box.dir, "costs.json")
    with open(model, "w") as f:
        f.write('{"seconds": {"bf16": 40, "int8": 25}, "spread": 0.3}')
    wall, rss, text = measured(QSWEEP, "simulate", "--ranks", "4096", "--cells", "100000", "--cost-model", model, "-o", "json")
    told = json.loads(text)
    row("simulate 100000 cells on 4096 ranks, static and dynamic", "%.2f s, %.0f MB" % (wall, rss))
    for kind in ("static", "dynamic"):
        row("  %s: makespan (at best %.0f s), idle share" % (kind, told["ideal_s"]),
            "%.0f s, %.1f %%" % (told[kind]["makespan_s"], 100 * told[kind]["idle_share"]))


place = os.path.join(BUILD, "bench-fleet")
shutil.rmtree(place, ignore_errors=True)
os.makedirs(place)
tempfile.tempdir = place
print("| %-66s | %22s |\n|%s|%s:|" % ("", "%d cores" % len(os.sched_getaffinity(0)), "-" * 68, "-" * 23))
try:
    with Sandbox() as box:
        planning(box)
        merging(place)
        one_rank(box)
        ranks(box, "static")
        ranks(box, "dynamic")
        simulation(box)
finally:
    shutil.rmtree(place, ignore_errors=True)
