#!/usr/bin/python3
"""The scripts below slurm/ on a real Slurm of three nodes: allocations, arrays, early warnings, requeues, lost nodes.

The daemons live in a namespace of the test's own, see namespace.py."""
import glob, os, re, shutil, signal, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "flow")]
import namespace
from flow import *

SCRIPTS = os.path.join(ROOT, "slurm")
NODES = 3
LIMIT_S = 150  # a job that takes longer hangs
SHORT = {"samples": 1, "max_new_tokens": 6}


class Cluster:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="qsc-", dir="/tmp")  # short: munge's socket lies here
        self.env = dict(os.environ, **MPI_ENV, QSWEEP_BUILD=BUILD, SLURM_CONF=self.dir + "/slurm.conf",
                        SLURM_BASE_PORT=str(20000 + os.getppid() % 1000 + int(time.time()) % 20000))

    def __enter__(self):
        up = self.tool("up", str(NODES))
        self.up = up.returncode == 0
        if not self.up:
            print("\n".join("# " + line for line in (up.stdout + up.stderr).splitlines()))
        return self

    def __exit__(self, *_):
        self.tool("down")
        shutil.rmtree(self.dir, ignore_errors=True)

    def tool(self, action, *args):
        # Daemons keep what they inherit: a pipe would never end, so its words go through a file.
        with tempfile.TemporaryFile("w+") as words:
            done = subprocess.run([HERE + "/slurm.sh", action, self.dir, *args], env=self.env, timeout=90,
                                  stdin=subprocess.DEVNULL, stdout=words, stderr=words)
            words.seek(0)
            done.stdout, done.stderr = words.read(), ""
        return done

    def ask(self, *command):
        """A client's answer; clients may wait for ever, so each has its limit."""
        done = subprocess.run(["timeout", "-k", "5", "20", *command], env=self.env, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    def submit(self, *args, env=None):
        """Job number of `sbatch ARGS`."""
        done = subprocess.run(["timeout", "-k", "5", "20", "sbatch", "--parsable", *args], capture_output=True, text=True,
                              env=dict(self.env, **(env or {})), cwd=ROOT)
        if done.returncode:
            print("# sbatch: " + done.stderr.strip())
        return done.stdout.strip()

    def show(self, job):
        """What Slurm says of a job (of an array: of its last task shown)."""
        return dict(item.split("=", 1) for item in self.ask("scontrol", "-o", "show", "job", job).split() if "=" in item)

    def ended(self, *jobs, limit=LIMIT_S):
        """States of jobs that are over, or None when that took too long."""
        def states():
            found = []
            for job in jobs:
                lines = self.ask("scontrol", "-o", "show", "job", job).splitlines()
                found += [m.group(1) for m in (re.search(r"JobState=(\S+)", line) for line in lines) if m]
            busy = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "NODE_FAIL"}
            return found if found and not busy & set(found) else None
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if states():
                return states()
            time.sleep(0.3)
        return None

    def lose(self, node):
        """The node and everything that runs on it is gone at once."""
        with open("%s/run/%s.pid" % (self.dir, node)) as f:
            os.kill(int(f.read()), signal.SIGKILL)


def text(path):
    try:
        with open(path, errors="replace") as f:
            return f.read()
    except FileNotFoundError:
        return "(no %s)" % path


def facts(path):
    import h5py
    with h5py.File(path, "r") as f:
        return [dict(cell["provenance/facts"].attrs) for cell in f["cells"].values()]


def ok_cells(out):
    """Cell files told to be ok, as they are now."""
    files = cell_files(out)
    return {e["id"]: files[e["id"]] for e in events(out, "cell") if e["status"] == "ok" and e["id"] in files}


def kept(before, out):
    now = cell_files(out)
    return all(now.get(i) == identity for i, identity in before.items())


def allocation(c, box, launcher):
    job, out = box.job("{precision: [bf16, int8], context: [0, 4, 8, 12]}", **SHORT), box.output()
    log = out + ".log"
    number = c.submit("-N2", "--ntasks-per-node=2", "--gpus-per-node=2", "-t30", "-o", log, SCRIPTS + "/sweep.sbatch", job, out,
                      env={"LAUNCHER": launcher})
    state = c.ended(number)
    check("one allocation of two nodes, four ranks by %s: every cell ok" % launcher,
          state == ["COMPLETED"] and statuses(out) == ["ok"] * 8, (state, text(log)))
    cells = events(out, "cell")
    check("both nodes and all four ranks took part (%s)" % launcher,
          len({e["host"] for e in cells}) == 2 and {e["rank"] for e in cells} == {0, 1, 2, 3}, cells)
    told = facts(out + "/sweep.h5") if statuses(out) else []
    check("provenance has Slurm's job number and nodes (%s)" % launcher,
          told != [] and all(f.get("slurm_job_id") == number and f.get("slurm_job_nodelist") for f in told), (number, told[:1]))
    check("no worker saw a part of its node's GPUs (%s)" % launcher,
          told != [] and all(f.get("cuda_visible_devices", "0,1") == "0,1" for f in told),
          [f.get("cuda_visible_devices") for f in told])
    scratch = c.ask("srun", "-N2", "-n2", "ls", "/tmp")
    check("the job's scratch folder is gone (%s)" % launcher, "qsweep-" + number not in scratch.split(), scratch)


def array(c, box):
    job, out = box.job("{precision: [bf16, int8], context: [0, 4, 8, 12, 16]}", **SHORT), box.output()
    done = subprocess.run([SCRIPTS + "/array.sh", "3", job, out, "-t30"], env=c.env, cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    numbers = done.stdout.split()
    if not check("array.sh submits an array and its merge", len(numbers) == 2, done):
        return
    states = c.ended(*numbers)
    logs = "".join(text(p) for p in sorted(glob.glob(out + "/slurm-*.out")))
    check("three shards and the merge complete", states == ["COMPLETED"] * 4, (states, logs))
    shards = [set(cell_files(d)) for d in sorted(glob.glob(out + "/shard-*"))]
    check("the shards are disjoint and none is empty",
          len(shards) == 3 and all(shards) and sum(map(len, shards)) == len(set.union(*shards)) == 10, shards)
    check("their merge has every cell of the sweep, all ok", statuses(out) == ["ok"] * 10, (statuses(out), logs))
    whole = subprocess.run([QSWEEP, "run", job, "--dry-run", "-o", "ids"], capture_output=True, text=True).stdout.split()
    check("they are the cells that the whole job plans", sorted(whole) == sorted(r["id"] for r in rows(out)))
    told = facts(out + "/sweep.h5") if statuses(out) else []
    check("provenance names the array and its tasks",
          {f.get("slurm_array_job_id") for f in told} == {numbers[0]}
          and {f.get("slurm_array_task_id") for f in told} == {"0", "1", "2"}, told[:1])
    before = {d: cell_files(d) for d in glob.glob(out + "/shard-*")}
    again = subprocess.run([SCRIPTS + "/array.sh", "3", job, out, "-t30"], env=c.env, cwd=ROOT, capture_output=True, text=True,
                           timeout=60).stdout.split()
    c.ended(*again)
    check("submitted again, the array measures nothing twice", before == {d: cell_files(d) for d in before})


def long_job(box, cells, tokens):
    """Cells of about a second on one core."""
    return box.job("{precision: [bf16, int8], context: 1..%d}" % (cells // 2), samples=2, max_new_tokens=tokens)


def start_warned(c, box):
    """A job whose minute ends too early. Slurm's clock for warnings is coarse (the one due after 10 s comes at about 25),
    so the other tests run beside it."""
    job, out = long_job(box, 2000, 200), box.output()
    number = c.submit("-N1", "-n1", "-t1", "--signal=B:USR1@50", "-w", "n3", "-o", out + ".log", SCRIPTS + "/sweep.sbatch", job, out,
                      "--grace", "1", env={"LAUNCHER": "none"})
    return number, out


def finish_warned(c, number, out):
    eventually(lambda: "requeued to go on" in text(out + ".log"), 60)
    before, log = ok_cells(out), text(out + ".log")
    check("Slurm's early warning stops the sweep, which is merged and requeues itself",
          "early warning" in log and "ended with status 3" in log and "requeued to go on" in log, log)
    table = statuses(out)
    check("by then some cells were ok and the others are rows that say pending or interrupted",
          before and "pending" in table and len(table) == 2000 and table.count("ok") >= len(before),
          {s: table.count(s) for s in set(table)})
    more = eventually(lambda: "start 2" in text(out + ".log") and len(ok_cells(out)) > len(before), 60)
    check("started again it goes on where it was, and no finished cell is measured again", more and kept(before, out),
          text(out + ".log"))
    c.ask("scancel", number)
    state = c.ended(number, limit=40)
    check("scancel ends it", state == ["CANCELLED"], (state, text(out + ".log")))


def requeue(c, box):
    job, out = long_job(box, 16, 200), box.output()
    number = c.submit("-N2", "--ntasks-per-node=1", "-t30", "-o", out + ".log", SCRIPTS + "/sweep.sbatch", job, out)
    eventually(lambda: len(ok_cells(out)) >= 2, 60)
    c.ask("scontrol", "requeue", number)
    eventually(lambda: c.show(number).get("JobState") == "PENDING", 30)
    before = ok_cells(out)
    state = c.ended(number)
    check("a requeued job resumes and completes", state == ["COMPLETED"] and statuses(out) == ["ok"] * 16,
          (state, statuses(out), text(out + ".log")))
    check("no cell that was finished before is measured again", len(before) >= 2 and kept(before, out), before)
    restarted = {f.get("slurm_restart_count") for f in facts(out + "/sweep.h5")} if statuses(out) else None
    check("provenance tells first from second start", restarted == {None, "1"}, restarted)


def node_lost(c, box):
    job, out = long_job(box, 24, 300), box.output()
    number = c.submit("-N2", "--ntasks-per-node=1", "-t30", "-o", out + ".log", SCRIPTS + "/sweep.sbatch", job, out)
    eventually(lambda: len(ok_cells(out)) >= 2, 60)
    first = c.show(number).get("BatchHost", "?")
    c.lose(first)
    eventually(lambda: c.show(number).get("JobState") == "PENDING" or c.show(number).get("Restarts") == "1", 60)
    before = ok_cells(out)
    state = c.ended(number)
    second = c.show(number).get("BatchHost")
    check("a node that dies with rank 0 on it: Slurm starts the job elsewhere, which takes the folder over and completes",
          state == ["COMPLETED"] and second != first and statuses(out) == ["ok"] * 24, (state, first, second, text(out + ".log")))
    check("no cell finished before the node died is measured again", len(before) >= 2 and kept(before, out))
    check("nothing half-written is left", not temporaries(out), temporaries(out))
    c.tool("node", first)
    check("the node comes back", eventually(lambda: "idle" in c.ask("sinfo", "-h", "-n", first, "-o", "%T"), 30),
          c.ask("sinfo", "-N", "-l"))


def main():
    with Cluster() as c:
        if not check("munge, slurmctld and three slurmds come up on loopback", c.up):
            return
        with Sandbox() as box:
            warned = start_warned(c, box)
            allocation(c, box, "mpirun")
            allocation(c, box, "srun")
            finish_warned(c, *warned)
            array(c, box)
            requeue(c, box)
            node_lost(c, box)


REASON = None if namespace.inside() else namespace.lacks("slurmctld", "slurmd", "munged", "sbatch", "mpirun")
if namespace.inside():
    main()
    done()
elif REASON or not os.path.exists(QSWEEP_MPI):
    skip("Slurm runs the scripts below slurm/", REASON or "qsweep-mpi was not built")
    done()
else:
    namespace.enter()
