#!/usr/bin/python3
"""qsweep-mpi under mpirun: the same cells as alone, and nothing lost when a worker, a rank or mpirun itself dies."""
import os, shutil, signal, subprocess, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from flow import *

EIGHT = "{precision: [bf16, int8], batch: [1, 2], context: [0, 8]}"


def codes(output):
    """cell id → the hashes of its samples' codes."""
    import h5py
    with h5py.File(os.path.join(output, "sweep.h5"), "r") as f:
        return {name: list(cell["samples/codes_hash"][...]) for name, cell in f["cells"].items()}


def facts(output):
    import h5py
    with h5py.File(os.path.join(output, "sweep.h5"), "r") as f:
        return [dict(cell["provenance/facts"].attrs) for cell in f["cells"].values()]


def overlap(output):
    """Largest number of workers that were alive at once, by rank 0's record."""
    now = most = 0
    for e in events(output):
        now += {"start": 1, "end": -1}.get(e["event"], 0)
        most = max(most, now)
    return most


def resumes(box, job, out, sentence, spared, ranks=2):
    run = box.run(job, "--resume", output=out, ranks=ranks)
    after = cell_files(out)
    kept = all(after.get(i) == identity for i, identity in spared.items())
    check(sentence, run.rc == 0 and set(statuses(out)) == {"ok"} and kept and not temporaries(out),
          "%s\nrc %s\n%s\nkept %s" % (run.err, run.rc, statuses(out), kept))


def same_as_alone(box):
    job = box.job(EIGHT, samples=2, processes=2)
    alone, four = box.run(job), box.run(job, ranks=4)
    check("mpirun -n 4 runs 2 precisions, 2 batches and 2 contexts to 8 ok rows",
          four.rc == 0 and statuses(four.output) == ["ok"] * 8, four.err)
    check("four ranks decode the very codes that one process does", codes(alone.output) == codes(four.output))
    check("all four ranks took part", {e["rank"] for e in events(four.output, "cell")} == {0, 1, 2, 3})
    check("cells of one host ran one at a time", overlap(four.output) == 1, overlap(four.output))
    check("provenance names ranks and MPI", all(f["ranks"] == "4" and "MPI" in f["mpi"] for f in facts(four.output)))
    starts = len(events(four.output, "start"))
    again = box.run(job, "--resume", output=four.output, ranks=3)
    check("resuming with another number of ranks measures nothing", again.rc == 0
          and len(events(four.output, "start")) == starts, again.err)

    dynamic = box.run(job, "--set", "schedule=dynamic", ranks=4)
    check("handed out dynamically, the same cells come out",
          dynamic.rc == 0 and codes(dynamic.output) == codes(alone.output), dynamic.err)
    side = box.run(box.job(EIGHT, "parallel: true", samples=4, max_new_tokens=20), ranks=2)
    check("parallel: true runs the cells of a host side by side, and says so in every cell",
          side.rc == 0 and overlap(side.output) == 2 and {f["workers_side_by_side"] for f in facts(side.output)} == {"2"},
          (side.err, overlap(side.output)))
    if len(os.sched_getaffinity(0)) >= 2:
        cores = {frozenset(f["cores"].split(",")) for f in facts(side.output)}
        check("their cores are disjoint", {f["cores_disjoint"] for f in facts(side.output)} == {"yes"} and len(cores) == 2, cores)
    else:
        skip("their cores are disjoint", "one core")

    out = box.output()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OMPI_")}
    p = subprocess.run([QSWEEP, "run", job, "--ranks", "3", "--output", out], capture_output=True, timeout=RUN_LIMIT_S, env=clean)
    check("qsweep run --ranks 3 starts mpirun by itself, also as root", p.returncode == 0 and statuses(out) == ["ok"] * 8, p)


def refusals(box):
    job = box.job()
    out = box.output()
    box.run(job, output=out)
    run = box.run(job, output=out, ranks=3)
    check("an existing output is refused under mpirun as well, by rank 0 alone",
          run.rc == 1 and run.err.count("--resume continues") == 1, run.err)
    run = box.run(job, "--set", "workload.samples=zero", ranks=2)
    check("a job that is wrong is told once", run.rc == 2 and run.err.count("error:") == 1, run.err)


def workers_die(box):
    job = box.job(EIGHT, samples=15)  # some 0.4 s a worker: the kill comes while it measures
    for _ in range(2 * ROUNDS):
        run = box.start(job, ranks=4)
        hits = [signal_worker(run, 0.1) for _ in range(chance.randint(1, 3))]
        run.wait()
        killed = {h["id"] for h in hits if h}
        table = {row["id"]: row["status"] for row in rows(run.output)}
        check("kill -9 of %d workers of four ranks: those are crashed rows, the other cells are ok" % len(killed),
              killed and run.rc == 3 and len(table) == 8 and all(table[i] == ("crashed" if i in killed else "ok") for i in table),
              (run.err, killed, table))
        files = cell_files(run.output)
        resumes(box, job, run.output, "resume measures only those again",
                {i: files[i] for i in table if table[i] == "ok"}, ranks=0)


def ranks_of(mpirun_pid):
    return [p for p in children_of(mpirun_pid) if "qsweep-mpi" in open("/proc/%d/cmdline" % p).read()]


def rank_or_mpirun_dies(box):
    job = box.job(EIGHT, samples=15)
    for victim in ["rank", "mpirun"] * ROUNDS:
        run = box.start(job, ranks=3)
        eventually(lambda: events(run.output, "start"), 30)
        time.sleep(chance.uniform(0, 0.5))
        os.kill(chance.choice(ranks_of(run.process.pid)) if victim == "rank" else run.process.pid, signal.SIGKILL)
        run.wait()
        gone = eventually(lambda: not processes_of(run.output), 20)
        check("after kill -9 of %s no rank, spawner or worker is left" % victim, run.rc != 0 and gone,
              (run.err, processes_of(run.output)))
        resumes(box, job, run.output, "resume after the death of %s repeats no finished cell" % victim, cell_files_ok(run.output))


def cell_files_ok(output):
    """Cells that rank 0 or a merge has seen as ok are among these; what was interrupted may run again."""
    good = {e["id"] for e in events(output, "cell") if e["status"] == "ok"}
    return {i: identity for i, identity in cell_files(output).items() if i in good}


def signals(box):
    job = box.job(EIGHT, samples=10)
    run = box.start(job, ranks=3)
    eventually(lambda: events(run.output, "start"), 30)
    run.signal(signal.SIGUSR1)
    run.wait()
    left = statuses(run.output)
    check("SIGUSR1 to mpirun: running cells are finished, no other starts, merged, status 3",
          run.rc == 3 and len(left) == 8 and "pending" in left and set(left) <= {"ok", "pending"}, (run.rc, run.err, left))
    resumes(box, job, run.output, "resume after it completes", cell_files_ok(run.output))

    run = box.start(job, ranks=3)
    eventually(lambda: events(run.output, "start"), 30)
    os.kill(chance.choice(ranks_of(run.process.pid)), signal.SIGUSR1)
    run.wait()
    left = statuses(run.output)
    check("SIGUSR1 to any one rank stops all of them", run.rc == 3 and "pending" in left, (run.rc, run.err, left))

    run = box.start(job, ranks=3)
    eventually(lambda: events(run.output, "start"), 30)
    run.signal(signal.SIGTERM)
    run.wait(60)
    gone = eventually(lambda: not processes_of(run.output), 10)
    check("SIGTERM to mpirun ends everything at once", run.rc != 0 and gone, (run.rc, run.err, processes_of(run.output)))
    resumes(box, job, run.output, "resume after SIGTERM completes", cell_files_ok(run.output))


if not os.path.exists(QSWEEP_MPI) or not shutil.which("mpirun"):
    skip("qsweep-mpi under mpirun", "no MPI on this machine")
    done()
with Sandbox() as box:
    same_as_alone(box)
    refusals(box)
    workers_die(box)
    rank_or_mpirun_dies(box)
    signals(box)
done()
