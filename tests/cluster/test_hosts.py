#!/usr/bin/python3
"""Open MPI across two hosts that are network namespaces: a sweep over TCP, a host that dies, a cable that comes out."""
import os, signal, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "flow")]
import namespace
from flow import *

AGENT = os.path.join(HERE, "netns.sh")


def tool(*args):
    return subprocess.run([AGENT, *args], capture_output=True, text=True, timeout=30)


def start(box, job, out, *args):
    """mpirun on host1 with two ranks there and two on host2."""
    launch = "exec mpirun --host host1:2,host2:2 --mca plm_rsh_agent '%s run' -n 4 '%s' run '%s' --output '%s' %s" % (
        AGENT, QSWEEP_MPI, job, out, " ".join(args))
    command = [AGENT, "run", "host1", launch]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict(os.environ, **MPI_ENV), cwd=box.dir)
    run = Run(process, out)
    box.runs.append(run)
    return run


def ok_cells(out):
    files = cell_files(out)
    return {e["id"]: files[e["id"]] for e in events(out, "cell") if e["status"] == "ok" and e["id"] in files}


def kept(before, out):
    now = cell_files(out)
    return all(now.get(i) == identity for i, identity in before.items())


def long_job(box):
    return box.job("{precision: [bf16, int8], context: 1..12}", samples=2, max_new_tokens=200)


def both_hosts(box):
    job, out = box.job("{precision: [bf16, int8], context: [0, 4, 8, 12]}"), box.output()
    run = start(box, job, out).wait(90)
    check("mpirun over two hosts: every cell ok", run.rc == 0 and statuses(out) == ["ok"] * 8, run.err)
    cells = events(out, "cell")
    check("two ranks of either host took part", {(e["host"], e["rank"]) for e in cells}
          == {("host1", 0), ("host1", 1), ("host2", 2), ("host2", 3)}, cells)


def host_dies(box):
    job, out = long_job(box), box.output()
    run = start(box, job, out)
    eventually(lambda: len(ok_cells(out)) >= 2 or not run.running(), 60)
    for pid in tool("pids", "host2").stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    run.wait(60)
    check("a host that dies ends the run with a failure, not with a hang", run.rc not in (0, None) and "hung" not in run.err,
          (run.rc, run.err))
    check("no process of the sweep is left on any host", eventually(lambda: not processes_of(out), 20), processes_of(out))
    before = ok_cells(out)
    again = start(box, job, out, "--resume").wait(120)
    check("--resume completes, and nothing finished is measured again",
          again.rc == 0 and statuses(out) == ["ok"] * 24 and kept(before, out), again.err)


def cable(box):
    """Nobody tells Open MPI: it hangs, and so a limit outside has to end it. What is on disk must be enough to go on."""
    job, out = long_job(box), box.output()
    run = start(box, job, out)
    eventually(lambda: len(ok_cells(out)) >= 2 or not run.running(), 60)
    tool("cut", "host2")
    time.sleep(1)
    for host in ("host1", "host2"):
        for pid in tool("pids", host).stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
    run.wait(30)
    before = ok_cells(out)
    subprocess.run(["ip", "-n", "host2", "link", "set", "veth2", "up"], check=True)
    again = start(box, job, out, "--resume").wait(120)
    check("after a cut cable and a hard end, --resume completes and nothing finished is measured again",
          again.rc == 0 and statuses(out) == ["ok"] * 24 and kept(before, out), again.err)


def staged_rows(out):
    import h5py
    with h5py.File(out + "/sweep.h5", "r") as f:
        table = f["staging/nodes"][...]
    return [{n: row[n].decode() if isinstance(row[n], bytes) else row[n] for n in table.dtype.names} for row in table]


def codes(out):
    import h5py
    with h5py.File(out + "/sweep.h5", "r") as f:
        return {name: list(cell["samples/codes_hash"][...]) for name, cell in f["cells"].items()}


def staging(box):
    """Weights between hosts: host2 gets them over the cable, part by part or whole, and has what host1 has."""
    plain = box.run(box.job("{precision: [bf16, int8], context: [0, 4]}"), "--set", "weights.share=none")
    checksums = set()
    for mode, share in (("shared", 1), ("shard", 0.5), ("auto", 0.5)):
        job, out = box.job("{precision: [bf16, int8], context: [0, 4]}"), box.output()
        run = start(box, job, out, "--set", "weights.share=" + mode).wait(90)
        if not check("two hosts with weights.share=%s: the codes of one host that reads the model's own files" % mode,
                     run.rc == 0 and codes(out) == codes(plain.output), run.err):
            continue
        table = staged_rows(out)
        checksums |= {(row["form"], row["checksum"]) for row in table}
        here, there = ([row for row in table if row["host"] == name] for name in ("host1", "host2"))
        check("both hosts tell how they got the two forms (%s)" % mode, len(here) == len(there) == 2 and all(
            row["mode"] == ("shard" if mode == "auto" else mode) for row in table), table)
        close = lambda row, want: abs(row["bytes_received"] / row["bytes"] - want) < 0.01
        check("host2 received %s of every file over the cable (%s)" % ("all" if share == 1 else "half", mode),
              all(close(row, share) and row["transfer_s"] > 0 for row in there)
              and all(close(row, 0 if share == 1 else 0.5) for row in here), table)
    check("one checksum a form on both hosts, whatever way", len(checksums) == 2, checksums)


SENTENCE = "mpirun over two hosts: every cell ok"
if namespace.inside():
    up = tool("up", "2")
    if up.returncode:
        skip(SENTENCE, "this environment permits no network namespaces: " + (up.stderr.strip().splitlines() or ["?"])[-1])
    else:
        with Sandbox() as box:
            both_hosts(box)
            staging(box)
            host_dies(box)
            cable(box)
    done()
elif namespace.lacks("ip", "mpirun") or not os.path.exists(QSWEEP_MPI):
    skip(SENTENCE, namespace.lacks("ip", "mpirun") or "qsweep-mpi was not built")
    done()
else:
    namespace.enter()
