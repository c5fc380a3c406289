#!/usr/bin/python3
"""Shards, watch and simulate: what a fleet needs around `run`."""
import json, os, subprocess, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from flow import *


def qsweep(*args):
    return subprocess.run([QSWEEP, *args], capture_output=True, text=True, timeout=60)


def shards(box):
    job, folder = box.job("{precision: [bf16, int8], context: [0, 4, 8]}"), box.output()
    outs = [os.path.join(folder, "shard-%d-of-2" % i) for i in range(2)]
    runs = [box.run(job, "--shard", "%d/2" % i, output=out) for i, out in enumerate(outs)]
    ids = [set(cell_files(out)) for out in outs]
    check("two shards run, share nothing and are together the sweep", [r.rc for r in runs] == [0, 0]
          and not ids[0] & ids[1] and ids[0] | ids[1] == set(qsweep("run", job, "--dry-run", "-o", "ids").stdout.split()),
          [r.err for r in runs])
    check("cells that differ in precision alone are in one shard",
          all(len({r["context"] for r in rows(out)}) * 2 == len(rows(out)) for out in outs))
    merged = os.path.join(folder, "sweep.h5")
    done = qsweep("merge", *outs, "-o", merged)
    check("merge joins their folders", done.returncode == 0 and statuses(folder) == ["ok"] * 6, done.stderr)
    empty = box.run(job, "--shard", "7/9")
    check("a shard without cells ends well and leaves nothing", empty.rc == 0 and "no cells" in empty.err
          and not os.path.exists(empty.output), empty.err)
    for wrong in ("2/2", "-1/2", "1", "1/", "a/b", "1/2x", "0/0"):
        refused = box.run(job, "--shard", wrong)
        if not check("--shard %s is a usage error" % wrong, refused.rc == 2 and "--shard" in refused.err, refused.err):
            break
    total = json.loads(qsweep("watch", folder, "-o", "json").stdout)
    check("watch sums up the shards of a folder", total["shards"] == 2 and total["cells"] == total["done"] == 6
          and total["state"] == "ended", total)


def watch(box):
    out = box.output()
    run = box.start(box.job("{precision: [bf16, int8], context: [0, 4, 8, 12]}", samples=2, max_new_tokens=150), output=out)
    seen = eventually(lambda: (lambda s: s if s["running"] and s["done"] and s["eta_s"] is not None else None)(
        json.loads(qsweep("watch", out, "-o", "json").stdout)) if os.path.exists(out + "/progress.jsonl") else None)
    check("watch tells of a running sweep", seen and seen["state"] == "running" and seen["cells"] == 8
          and seen["hosts"][0]["running"] == 1 and seen["slowest_s"] > 0 and seen["eta_s"] is not None, seen)
    run.wait()
    after = json.loads(qsweep("watch", out, "--once", "-o", "json").stdout)
    check("and of its end", after["state"] == "ended" and after["done"] == 8 and not after["running"] and not after["failed"], after)
    table = qsweep("watch", out).stdout
    check("as a table too", "ended; 8 of 8 cells done" in table and "slowest cell" in table, table)
    check("a folder that is not there is told so", qsweep("watch", out + "/none").returncode == 1)


def simulate(box):
    model = os.path.join(box.dir, "costs.json")
    with open(model, "w") as f:
        f.write('{"seconds": {"bf16": 40, "int8": 25}, "spread": 0.3, "kinds": [{"speed": 1}, {"speed": 0.5}]}')
    done = qsweep("simulate", "--ranks", "64", "--cells", "4001", "--cost-model", model, "-o", "json")
    told = json.loads(done.stdout)
    check("4001 cells on 64 ranks: none is lost, static or dynamic", told["static"]["cells"] == told["dynamic"]["cells"] == 4001, done)
    check("on ranks of two speeds dynamic hand-out ends sooner",
          told["ideal_s"] < told["dynamic"]["makespan_s"] < told["static"]["makespan_s"], told)
    again = json.loads(qsweep("simulate", "--ranks", "64", "--cells", "4001", "--cost-model", model, "-o", "json").stdout)
    check("the same seed draws the same costs", again["work_s"] == told["work_s"]
          and again["static"]["makespan_s"] == told["static"]["makespan_s"], (told, again))
    run = box.run(box.job())
    measured = qsweep("simulate", "--cells", "100", "--cost-model", run.output + "/sweep.h5", "-o", "json")
    check("a merged sweep is a cost model", measured.returncode == 0 and json.loads(measured.stdout)["work_s"] > 0, measured)
    with open(model, "w") as f:
        f.write('{"seconds": {"bf16": -1}}')
    wrong = qsweep("simulate", "--cost-model", model)
    check("a wrong cost model is refused by name", wrong.returncode == 1 and "costs.json: seconds" in wrong.stderr, wrong)


with Sandbox() as box:
    shards(box)
    watch(box)
    simulate(box)
done()
