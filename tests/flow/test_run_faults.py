#!/usr/bin/python3
"""What dies, hangs, fills up or is cut short while `qsweep run` measures: every time a valid, resumable sweep remains."""
import os, resource, shutil, signal, subprocess, sys, tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from flow import *

FOUR = "{precision: [bf16, int8], batch: [1, 2]}"


def resumes(box, job, out, sentence, spared=None):
    """--resume ends with 0 and all cells ok; cells in `spared` (id → file identity) are not measured again."""
    run = box.run(job, "--resume", output=out)
    after = cell_files(out)
    kept = all(after.get(i) == identity for i, identity in (spared or {}).items())
    check(sentence, run.rc == 0 and set(statuses(out)) == {"ok"} and kept and not temporaries(out),
          "%s\nrc %s\n%s\nkept %s, temporaries %s" % (run.err, run.rc, statuses(out), kept, temporaries(out)))


def ok_files(output):
    """Identities of the cell files that the merged table calls ok."""
    files = cell_files(output)
    return {row["id"]: files[row["id"]] for row in rows(output) if row["status"] == "ok"}


def worker_dies(box):
    job = box.job(FOUR, samples=15)  # some 0.4 s a worker: the signal comes while it measures
    for number, name in ((signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")):
        for _ in range(ROUNDS * (2 if number == signal.SIGKILL else 1)):
            run = box.start(job)
            hit = signal_worker(run, 0.1, number)
            run.wait()
            table = {row["id"]: row for row in rows(run.output)}
            crashed = [i for i in table if table[i]["status"] == "crashed"]
            reason = [e["reason"] for e in events(run.output, "cell") if e["id"] in crashed]
            check("a worker killed by %s is a crashed row that names the signal; the others are ok" % name,
                  hit is not None and run.rc == 3 and len(table) == 4 and crashed == [hit["id"]]
                  and "signal %d" % number in reason[0] and sum(r["status"] == "ok" for r in table.values()) == 3,
                  "%s\nhit %s, crashed %s, reason %s" % (run.err, hit, crashed, reason))
            spared = ok_files(run.output)
            resumes(box, job, run.output, "resume measures that cell alone", spared)


def worker_hangs(box):
    job = box.job(FOUR, "deadline: 3", samples=15)
    run = box.start(job)
    hit = signal_worker(run, 0.05, signal.SIGSTOP)
    run.wait()
    table = {row["id"]: row["status"] for row in rows(run.output)}
    check("a worker that hangs is ended at its deadline and is a timeout row",
          hit is not None and run.rc == 3 and [i for i in table if table[i] == "timeout"] == [hit["id"]]
          and sorted(table.values()) == ["ok", "ok", "ok", "timeout"], (run.err, table, hit))
    check("no process of the sweep is left", not processes_of(run.output), processes_of(run.output))
    resumes(box, job, run.output, "resume after a hang measures that cell alone", ok_files(run.output))


def launcher_dies(box):
    job = box.job(FOUR, samples=15, processes=2)
    for _ in range(ROUNDS):
        run = box.start(job)
        eventually(lambda: events(run.output, "start"), 30)
        time.sleep(chance.uniform(0, 1))
        run.signal(signal.SIGKILL)
        run.wait()
        gone = eventually(lambda: not processes_of(run.output), 10)
        check("when the launcher is killed, its spawner and workers go with it", gone, processes_of(run.output))
        finished = cell_files(run.output)
        merged = subprocess.run([QSWEEP, "merge", run.output, "-o", os.path.join(run.output, "early.h5")],
                                capture_output=True, timeout=60)
        check("what was finished can be merged by itself", merged.returncode in (0, 3), merged)
        refused = box.run(job, output=run.output)
        check("running again without --resume is refused", refused.rc == 1 and "--resume" in refused.err, refused.err)
        resumes(box, job, run.output, "resume completes and repeats no finished cell", finished)


def spawner_dies(box):
    job = box.job(FOUR, samples=20)
    run = box.start(job)
    eventually(lambda: events(run.output, "start"), 30)
    spawners = children_of(run.process.pid)
    for pid in spawners:
        os.kill(pid, signal.SIGKILL)
    run.wait()
    check("a dead spawner is said so, and the launcher ends with 1",
          len(spawners) == 1 and run.rc == 1 and "spawner" in run.err, (spawners, run.rc, run.err))
    check("its cell is interrupted and the rest pending, all in the merged file",
          sorted(set(statuses(run.output))) == ["interrupted", "pending"] and len(statuses(run.output)) == 4,
          statuses(run.output))
    resumes(box, job, run.output, "resume after the spawner's death completes")


def files_cut_short(box):
    job = box.job(FOUR)
    out = box.run(job).output
    for share in (0, 0.02, 0.5, 0.99):
        before = cell_files(out)
        victim = chance.choice(sorted(before))
        path = os.path.join(out, "cells", victim[:2], "cell-%s.h5" % victim)
        os.truncate(path, int(os.path.getsize(path) * share))
        del before[victim]
        resumes(box, job, out, "a cell file cut to %g %% is measured again, and only that one" % (100 * share), before)
    spoilt = chance.choice(sorted(cell_files(out)))
    with open(os.path.join(out, "cells", spoilt[:2], "cell-%s.h5" % spoilt), "r+b") as f:
        f.seek(2000)
        f.write(os.urandom(64))
    merged = subprocess.run([QSWEEP, "merge", out, "-o", os.path.join(out, "again.h5")], capture_output=True, timeout=60)
    check("a damaged cell file does not stop a merge", merged.returncode in (0, 3), merged)


def two_launchers(box):
    job = box.job(FOUR, samples=30)
    first = box.start(job)
    eventually(lambda: events(first.output, "start"), 30)
    for args in ((), ("--resume",), ("--resume", "--take-lock")):
        second = box.run(job, *args, output=first.output)
        check("a second launcher (%s) is refused and told the first one's process" % (" ".join(args) or "plain"),
              second.rc == 1 and "process %d" % first.process.pid in second.err, second.err)
    first.wait()
    check("the first launcher is not disturbed", first.rc == 0 and statuses(first.output) == ["ok"] * 4, first.err)
    check("the lock is gone afterwards", not os.path.exists(os.path.join(first.output, "lock")))


def signals(box):
    job = box.job(FOUR, samples=15)
    for _ in range(ROUNDS):
        run = box.start(job)
        eventually(lambda: events(run.output, "start"), 30)
        time.sleep(chance.uniform(0, 0.3))
        run.signal(signal.SIGUSR1)
        run.wait()
        left = statuses(run.output)
        check("SIGUSR1: the running cell is finished, no other is started, everything is merged, status 3",
              run.rc == 3 and len(left) == 4 and "pending" in left and set(left) <= {"ok", "pending"}, (run.err, left))
        resumes(box, job, run.output, "resume after SIGUSR1 completes and repeats nothing", ok_files(run.output))

    long = box.job("{precision: [bf16, int8]}", samples=100000)
    run = box.start(long, "--grace", "1")
    eventually(lambda: events(run.output, "start"), 30)
    run.signal(signal.SIGUSR1)
    run.wait(60)
    check("SIGUSR1: a cell that outlasts the grace is dropped and recorded as interrupted",
          run.rc == 3 and statuses(run.output) == ["interrupted", "pending"], (run.err, statuses(run.output)))

    for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT"), (signal.SIGHUP, "SIGHUP")):
        run = box.start(long)
        eventually(lambda: events(run.output, "start"), 30)
        run.signal(number)
        run.wait(30)
        check("%s: the running cell is dropped, the launcher ends with 1, nothing is left running or half-written" % name,
              run.rc == 1 and not processes_of(run.output) and not temporaries(run.output)
              and statuses(run.output) == ["interrupted", "pending"], (run.rc, run.err, statuses(run.output)))


def disk_full(box):
    if os.geteuid() != 0:
        return skip("a full disk stops the sweep with 1, and resume completes", "mounting a small tmpfs needs root")
    mount = os.path.join(box.dir, "small")
    os.mkdir(mount)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", mount], capture_output=True).returncode:
        return skip("a full disk stops the sweep with 1, and resume completes", "no tmpfs can be mounted here")
    try:
        out = os.path.join(mount, "out")
        job = box.job("{precision: [bf16, int8], batch: [1, 2, 3, 4], context: [0, 8]}", samples=3)
        run = box.run(job, output=out)
        done_ids = {e["id"] for e in events(out, "cell") if e["status"] == "ok"}
        finished = {i: identity for i, identity in cell_files(out).items() if i in done_ids}
        check("a full disk stops the sweep with 1 and is named", run.rc == 1 and "No space left" in run.err, run.err)
        check("some cells were finished before and nothing half-written counts as one",
              0 < len(finished) < 16 and len(cell_files(out)) == len(finished) and not temporaries(out),
              (events(out, "cell"), temporaries(out)))
        subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
        resumes(box, job, out, "with space again, resume completes and repeats no finished cell", finished)
    finally:
        subprocess.run(["umount", "-l", mount])


def file_size_limit(box):
    """The same without root: every write beyond a few kilobytes fails with EFBIG."""
    job = box.job("{precision: [bf16]}")
    out = box.output()
    limit = lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)))
    p = subprocess.run([QSWEEP, "run", job, "--output", out], capture_output=True, timeout=120, preexec_fn=limit)
    check("files that cannot grow end a run with 1 and a reason, not with a crash",
          p.returncode == 1 and p.stderr.strip() and not cell_files(out), p)
    resumes(box, job, out, "without the limit, resume completes")


class MemoryCgroup:
    """A memory cgroup of its own (v1 or v2), or None as path where that is not possible."""

    def __init__(self, megabytes):
        self.path, base = None, None
        with open("/proc/self/cgroup") as f:
            for line in f:
                _, controllers, group = line.rstrip("\n").split(":", 2)
                if controllers == "memory":
                    base, limit = "/sys/fs/cgroup/memory" + group, "memory.limit_in_bytes"
                elif controllers == "" and os.path.exists("/sys/fs/cgroup" + group + "/memory.max"):
                    base, limit = "/sys/fs/cgroup" + group, "memory.max"
        try:
            self.path = os.path.join(base, "qsweep-test-%d" % os.getpid())
            os.mkdir(self.path)
            with open(os.path.join(self.path, limit), "w") as f:
                f.write(str(megabytes << 20))
        except (OSError, TypeError):
            self.close()

    def enter(self):
        with open(os.path.join(self.path, "cgroup.procs"), "w") as f:
            f.write("0")

    def close(self):
        if self.path and os.path.isdir(self.path):
            eventually(lambda: not open(os.path.join(self.path, "cgroup.procs")).read(), 10)
            os.rmdir(self.path)
        self.path = None


def killed_for_memory(box):
    group = MemoryCgroup(64)
    sentence = "a worker killed by the kernel's out-of-memory killer is an oom row that says so; the other cell is ok"
    if not group.path:
        return skip(sentence, "no memory cgroup can be made here")
    try:
        # 4096 positions of 512 sequences: 4 layers · 2 · 2 heads · 32 · 2 bytes a position = 2 GiB that are zeroed at once.
        job = box.job("{batch: [1, 512]}", "max_seq_len: 4096")
        out = box.output()
        p = subprocess.run([QSWEEP, "run", job, "--output", out], capture_output=True, timeout=120, preexec_fn=group.enter)
        table = {row["batch"]: row["status"] for row in rows(out)}
        reasons = [e["reason"] for e in events(out, "cell") if e["status"] == "oom"]
        check(sentence, p.returncode == 3 and table == {1: "ok", 512: "oom"} and "out-of-memory killer" in reasons[0],
              (p.stderr.decode(), table, reasons))
    finally:
        group.close()


with Sandbox() as box:
    worker_dies(box)
    worker_hangs(box)
    launcher_dies(box)
    spawner_dies(box)
    files_cut_short(box)
    two_launchers(box)
    signals(box)
    disk_full(box)
    file_size_limit(box)
    killed_for_memory(box)
done()
