#!/usr/bin/python3
"""qsweep run on one machine: what it leaves, what it refuses, and that a failure is a row."""
import json, os, pty, subprocess, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from flow import *

AXES = ("precision", "batch", "context")


def plans_and_runs(box):
    job = box.job("{precision: [bf16, int8], batch: [1, 2], context: [0, 8]}", processes=2, samples=2, warmup=1)
    out = box.output()
    dry = subprocess.run([QSWEEP, "run", job, "--output", out, "--dry-run", "-o", "ids"], capture_output=True, timeout=60)
    ids = dry.stdout.decode().split()
    check("a dry run prints one id a cell and makes no folder", dry.returncode == 0 and len(ids) == len(set(ids)) == 8
          and not os.path.exists(out), dry)

    run = box.run(job, output=out)
    found = rows(out)
    check("a sweep of 2 precisions, 2 batches and 2 contexts ends with 0", run.rc == 0, run.err)
    check("the merged file has one row a planned cell, with the planned ids", sorted(r["id"] for r in found) == sorted(ids), found)
    shown = subprocess.run([QSWEEP, "show", os.path.join(out, "sweep.h5"), "-o", "jsonl"], capture_output=True, timeout=60)
    lines = shown.stdout.decode().splitlines()
    check("show -o jsonl prints exactly one object a planned cell",
          shown.returncode == 0 and sorted(json.loads(line)["id"] for line in lines) == sorted(ids), shown)
    check("no two rows have the same axes", len({tuple(r[a] for a in AXES) for r in found}) == 8, found)
    check("every cell is ok", {r["status"] for r in found} == {"ok"}, found)
    check("nothing unfinished is left in the folder", not temporaries(out) and not os.path.exists(os.path.join(out, "work")),
          os.listdir(out))

    order = {}
    for e in events(out, "start"):
        order.setdefault(e["label"].split(" ", 1)[1], []).append(e["label"].split()[0])
    check("two processes a cell run as A B B A within each pair of precisions",
          len(order) == 4 and all(o in (["bf16", "int8", "int8", "bf16"], ["int8", "bf16", "bf16", "int8"])
                                  for o in order.values()), order)
    return job, out


def refuses_and_resumes(box, job, out):
    before = cell_files(out)
    run = box.run(job, output=out)
    check("an existing output is refused with 1 and the flag is named", run.rc == 1 and "--resume" in run.err, run.err)
    starts = len(events(out, "start"))
    run = box.run(job, "--resume", output=out)
    check("resuming a finished sweep measures nothing and ends with 0",
          run.rc == 0 and len(events(out, "start")) == starts and cell_files(out) == before, run.err)

    wider = box.job("{precision: [bf16, int8], batch: [1, 2, 3], context: [0, 8]}", processes=2, samples=2, warmup=1)
    run = box.run(wider, "--resume", output=out)
    after = cell_files(out)
    check("a widened job resumes with the new cells alone",
          run.rc == 0 and len(after) == 12 and all(after[i] == before[i] for i in before), run.err)
    run = box.run(job, "--resume", "--set", "workload.samples=3", output=out)
    check("another workload does not resume into the folder", run.rc == 1 and "plan.json" in run.err, run.err)

    stranger = box.output()
    os.mkdir(stranger)
    open(os.path.join(stranger, "thesis.tex"), "w").close()
    run = box.run(job, "--resume", output=stranger)
    check("a folder that holds no sweep is never resumed into",
          run.rc == 1 and os.listdir(stranger) == ["thesis.tex"], (run.err, os.listdir(stranger)))


def refuses_bad_input(box):
    job = box.job()
    for sentence, args, status in (
            ("no job file is a usage error", [], 2),
            ("two job files are a usage error", [job, job], 2),
            ("an unknown option is a usage error", [job, "--frobnicate"], 2),
            ("an unknown status for --keep is a usage error", [job, "--keep", "lost"], 2),
            ("zero ranks are a usage error", [job, "--ranks", "0"], 2),
            ("a missing job file is refused", ["/nowhere/job.yaml"], 1),
            ("an output that cannot be made is refused", [job, "--output", "/proc/nowhere/out"], 1),
            ("a missing model is refused", [job, "--set", "model=/nowhere/model"], 1)):
        p = subprocess.run([QSWEEP, "run", *args], capture_output=True, timeout=60, cwd=box.dir, stdin=subprocess.DEVNULL)
        check(sentence, p.returncode == status and p.stderr.strip(), p)


def failures_are_rows(box):
    job = box.job("{precision: [bf16, int8], memory_limit: [0, 6MB]}")
    out = box.output()
    run = box.run(job, output=out)
    by_status = {}
    for row in rows(out):
        by_status.setdefault(row["status"], []).append(row)
    check("cells over their memory limit are oom, the others ok, and the exit status is 3",
          run.rc == 3 and {k: len(v) for k, v in by_status.items()} == {"ok": 2, "oom": 2}, (run.err, by_status))
    check("an oom says how many bytes were missing",
          all("bytes missing" in e["reason"] for e in events(out, "cell") if e["status"] == "oom"), events(out, "cell"))

    before = cell_files(out)
    run = box.run(job, "--resume", "--keep", "oom,invalid", output=out)
    check("--resume --keep oom measures nothing again", run.rc == 3 and cell_files(out) == before, run.err)
    run = box.run(job, "--resume", output=out)
    after = cell_files(out)
    check("--resume measures exactly the cells that were not ok again",
          run.rc == 3 and sorted(i for i in before if before[i] != after[i]) == sorted(r["id"] for r in by_status["oom"]),
          run.err)

    out = box.output()
    run = box.run(box.job("{precision: [bf16], context: [0, 100000]}"), output=out)
    check("a context that does not fit the model is a row of status invalid",
          run.rc == 3 and statuses(out) == ["invalid", "ok"], run.err)

    out = box.output()
    long = box.job("{precision: [int8]}", "deadline: 2", max_new_tokens=100, samples=100000)
    run = box.run(long, output=out)
    found = rows(out)
    check("a cell over its deadline is a row of status timeout", run.rc == 3 and [r["status"] for r in found] == ["timeout"],
          run.err)
    check("the samples that were finished before the deadline are kept", found and found[0]["samples"] > 0, found)


def settings_reach_the_cells(box):
    import h5py
    out = box.output()
    run = box.run(box.job("{precision: [fp32]}"), "--set", "workload.samples=3", "--set", "seed=7", output=out)
    with h5py.File(os.path.join(out, "sweep.h5"), "r") as f:
        cell = next(iter(f["cells"].values()))
        samples, facts = cell["samples"], dict(cell["provenance/facts"].attrs)
        check("--set reaches the measurement: three repeats of two texts, seed 7",
              run.rc == 0 and len(samples["repeat"]) == 6 and set(samples["seed"][...]) == {7}, run.err)
        check("provenance names host, processor, command and program",
              all(facts.get(k) for k in ("host", "cpu_count", "hdf5", "command", "program", "compiler", "kernel", "run_id"))
              and "--set seed=7" in facts["command"], facts)
        bare = []
        f.visititems(lambda name, o: bare.append(name) if isinstance(o, h5py.Dataset) and "units" not in o.attrs else None)
        check("every dataset of sweep.h5 has units", not bare, bare)


def shows_progress(box):
    job = box.job()
    plain = box.run(job)
    check("without a terminal there is no bar", plain.rc == 0 and "\r" not in plain.err and "2 of 2 cells" in plain.err, plain.err)
    quiet = box.run(job, "--quiet")
    check("--quiet tells only where the result is", quiet.rc == 0 and len(quiet.err.splitlines()) == 1, quiet.err)

    master, slave = pty.openpty()
    run = subprocess.Popen([QSWEEP, "run", job, "--output", box.output()], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
    os.close(slave)
    text = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        text += piece
    os.close(master)
    check("on a terminal a bar with an ETA is rewritten in place",
          run.wait() == 0 and b"\r" in text and b"[####" in text and b"ETA" in text and b"2/2 cells" in text, text)


with Sandbox() as box:
    finished = plans_and_runs(box)
    refuses_and_resumes(box, *finished)
    refuses_bad_input(box)
    failures_are_rows(box)
    settings_reach_the_cells(box)
    shows_progress(box)
done()
