"""flow.py — what the flow tests of `run` share: TAP lines, a tiny model, job files, runs, and what they left behind.

A test file opens a Sandbox, calls check() for every sentence and ends with done(). Children die with the sandbox.
QSWEEP_BUILD names the build folder; ROUNDS (default 1) multiplies the random faults; SEED repeats their times.
"""
import glob, json, os, random, shutil, signal, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("QSWEEP_BUILD", os.path.join(ROOT, "build")))
QSWEEP = os.path.join(BUILD, "qsweep")
QSWEEP_MPI = os.path.join(BUILD, "qsweep-mpi")
ROUNDS = int(os.environ.get("ROUNDS", "1"))
SEED = int(os.environ.get("SEED", str(random.randrange(1 << 30))))
MPI_ENV = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
           "OMPI_MCA_rmaps_base_oversubscribe": "1"}
os.environ.setdefault("ASAN_OPTIONS", "handle_segv=0")  # so that a SIGSEGV is one under AddressSanitizer as well
RUN_LIMIT_S = 240  # a run that takes longer hangs

chance = random.Random(SEED)
_count = _failed = 0


def check(sentence, good, detail=""):
    global _count, _failed
    _count += 1
    _failed += not good
    print("ok" if good else "not ok", _count, "-", sentence, flush=True)
    if not good and detail:
        print("\n".join("# " + line for line in str(detail).splitlines()[-40:]), flush=True)
    return good


def skip(sentence, reason):
    global _count
    _count += 1
    print("ok %d - %s # skip %s" % (_count, sentence, reason), flush=True)


def done():
    print("1..%d" % _count)
    sys.exit(1 if _failed else 0)


class Run:
    """A finished or running `qsweep run`."""

    def __init__(self, process, output):
        self.process, self.output, self.rc, self.err = process, output, None, ""

    def wait(self, limit=RUN_LIMIT_S):
        try:
            _, err = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, err = self.process.communicate()
            err += b"\n(killed by the test: it hung)"
        self.err += err.decode(errors="replace")
        self.rc = self.process.returncode
        return self

    def signal(self, number):
        self.process.send_signal(number)

    def running(self):
        return self.process.poll() is None


class Sandbox:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="qsweep-flow-")
        self.model = os.path.join(self.dir, "nano")
        self.runs = []
        self.numbers = iter(range(1, 10000))
        subprocess.run([QSWEEP, "synth", self.model, "--shape", "s1-nano", "--seed", "1"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        print("# seed %d" % SEED)
        return self

    def __exit__(self, *_):
        for run in self.runs:
            if run.running():
                run.process.kill()
                run.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def output(self):
        return os.path.join(self.dir, "out-%d" % next(self.numbers))

    def job(self, sweep="{precision: [bf16, int8]}", extra="", **workload):
        """Path of a job file; its default cells take some 0.1 s each."""
        values = {"samples": 1, "warmup": 0, "length": "fixed", "max_new_tokens": 6, "texts": '["One text.", "Two."]'}
        values.update(workload)
        path = os.path.join(self.dir, "job-%d.yaml" % next(self.numbers))
        with open(path, "w") as f:
            f.write("model: %s\nsweep: %s\nworkload: {%s}\ndevice: cpu\n%s\n" %
                    (self.model, sweep, ", ".join("%s: %s" % item for item in values.items()), extra))
        return path

    def start(self, job, *args, output=None, ranks=0, env=None, prefix=()):
        output = output or self.output()
        command = [QSWEEP, "run", job, "--output", output, *args]
        environment = dict(os.environ, **(env or {}))
        if ranks:
            command = ["mpirun", "-n", str(ranks), QSWEEP_MPI, *command[1:]]
            environment.update(MPI_ENV)
        process = subprocess.Popen([*prefix, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=environment, cwd=self.dir)
        run = Run(process, output)
        self.runs.append(run)
        return run

    def run(self, job, *args, **kw):
        return self.start(job, *args, **kw).wait()


def events(output, kind=None):
    """The objects of progress.jsonl; a last line that is still being written is left out."""
    try:
        with open(os.path.join(output, "progress.jsonl")) as f:
            lines = f.read().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [e for e in map(json.loads, lines) if kind is None or e["event"] == kind]


def eventually(condition, limit=60):
    """The first true value of condition(), or None after `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    return None


def rows(output):
    """Rows of /summary in sweep.h5 as dicts; texts decoded. [] when there is no such file."""
    import h5py
    try:
        with h5py.File(os.path.join(output, "sweep.h5"), "r") as f:
            table = f["summary"][...]
    except FileNotFoundError:
        return []
    text = lambda v: v.decode() if isinstance(v, bytes) else v
    return [{name: text(row[name]) for name in table.dtype.names} for row in table]


def statuses(output):
    return sorted(row["status"] for row in rows(output))


def cell_files(output):
    """id → (inode, modification time): a cell that was not measured again has both unchanged."""
    found = {}
    for path in glob.glob(os.path.join(output, "cells", "??", "cell-*.h5")):
        st = os.stat(path)
        found[os.path.basename(path)[5:-3]] = (st.st_ino, st.st_mtime_ns)
    return found


def temporaries(output):
    """Unfinished files that a process left."""
    return [os.path.join(d, f) for d, _, files in os.walk(output) for f in files if f.endswith(".tmp")]


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(output):
    """Processes whose command line names this output folder."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        pid = int(path.split("/")[2])
        try:
            with open(path, "rb") as f:
                text = f.read()
        except OSError:
            continue
        if os.fsencode(output) in text and pid != os.getpid() and alive(pid):
            found.append(pid)
    return found


def children_of(pid):
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path) as f:
                text = f.read()
        except OSError:
            continue
        if int(text.rsplit(")", 1)[1].split()[1]) == pid:
            found.append(int(path.split("/")[2]))
    return found


def signal_worker(run, within, number=signal.SIGKILL):
    """Signal a worker of this run at a random moment, at most `within` s after its start was told. Its start event, or
    None when the run ended before one was hit."""
    seen = len(events(run.output, "start"))
    while run.running():
        starts = eventually(lambda: events(run.output, "start")[seen:] or not run.running(), 30)
        if not starts or starts is True:
            return None
        seen += len(starts)
        time.sleep(chance.uniform(0, within))
        try:
            if alive(starts[-1]["pid"]):
                os.kill(starts[-1]["pid"], number)
                return starts[-1]
        except ProcessLookupError:
            pass
    return None
