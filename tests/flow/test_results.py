#!/usr/bin/python3
"""merge, show and export over invented cell files: what users of the files and of the three commands rely on."""
import csv, fcntl, io, json, os, random, re, shutil, subprocess, sys, tempfile
from flow import BUILD, QSWEEP, SEED, check, done, skip

CELLS, SAMPLES_PER_TEXT, TEXTS = 12, 5, 4
REFERENCE_KEYS = """config_name checkpoint_path is_prequantized vram_baseline_mb vram_peak_mb warmup_time_s avg_latency_s
std_latency_s p50_latency_s p95_latency_s p99_latency_s avg_rtf tokens_per_sec throughput_x_realtime audio_per_hour
samples_tested errors""".split()

folder = tempfile.mkdtemp(prefix="qsweep-results-")
results = os.path.join(folder, "r")
sweep = os.path.join(results, "sweep.h5")


def run(*args, cwd=None):
    return subprocess.run([QSWEEP, *args], capture_output=True, timeout=120, stdin=subprocess.DEVNULL, text=True, cwd=cwd)


def make(where, cells, seed, samples):
    out = subprocess.run([os.path.join(BUILD, "tests/flow/make_results"), where, str(cells), str(seed), str(samples)],
                         capture_output=True, text=True, check=True)
    return out.stdout.split()


def close(a, b):
    return abs(a - b) <= 1e-9 * max(1.0, abs(b))


ids = make(results, CELLS, 1, SAMPLES_PER_TEXT)
merged = run("merge", results, "--verify")
check("merge --verify succeeds and says what became of the cells", merged.returncode == 0 and "12 cells: 10 ok, 1 oom, 1 crashed"
      in merged.stderr and "cells equal their sources" in merged.stderr and merged.stdout == "", merged.stderr)
again = run("merge", results)
check("merging again says that nothing had changed", again.returncode == 0 and "nothing had changed" in again.stderr, again.stderr)

lines = run("show", sweep, "-o", "jsonl").stdout.splitlines()
rows = [json.loads(line) for line in lines]
by_id = {row["id"]: row for row in rows}
check("jsonl has exactly one object per cell", len(rows) == CELLS and set(by_id) == set(ids))
check("every object has id, status, the axes and the figures", all(
    key in row for row in rows for key in "id status precision kv batch context max_seq_len head engine codec sampling device "
    "rtf frames_per_s tokens_per_s_reference vram_baseline_mb vram_peak_mb latency_mean_s notes reason".split()))
check("failed cells have their reason and null figures, never zeros", all(
    row["reason"] and row["frames_per_s"] is None and row["latency_mean_s"] is None for row in rows if row["status"] != "ok")
    and sum(row["status"] != "ok" for row in rows) == 2)
check("p95 of 20 samples is a number, p99 is null and notes say why", all(
    row["latency_p95_s"] > 0 and row["latency_p99_s"] is None and "p99 needs 100 samples, n = 20" in row["notes"]
    for row in rows if row["status"] == "ok"))
check("json is the same rows as one array", json.loads(run("show", results, "-o", "json").stdout) == rows)
table = list(csv.DictReader(io.StringIO(run("show", sweep, "-o", "csv").stdout)))
check("csv has the same rows and values", len(table) == CELLS and all(
    (t["frames_per_s"] == "") if by_id[t["id"]]["frames_per_s"] is None else close(float(t["frames_per_s"]), by_id[t["id"]]["frames_per_s"])
    for t in table))
markdown = run("show", sweep).stdout
check("the table is at most 100 columns wide", max(len(line) for line in markdown.splitlines()) <= 100,
      max(markdown.splitlines(), key=len))
check("the table has a row per cell and lists the failures with their reasons below it",
      len(re.findall(r"^\| (?:bf16|int8) +\| +\d", markdown, re.M)) == CELLS
      and "Not ok: 2 of 12 cells" in markdown and "oom: needs 12.4 GB, the limit is 8.0 GB" in markdown, markdown)

samples = [json.loads(line) for line in run("show", sweep, "--samples", "-o", "jsonl").stdout.splitlines()]
check("--samples has every sample", len(samples) == 10 * SAMPLES_PER_TEXT * TEXTS, len(samples))
definitions = run("show", "--definitions").stdout
check("--definitions defines every column", all(key in definitions for key in rows[0]))

one = next(row for row in rows if row["status"] == "ok" and row["precision"] == "int8" and row["batch"] == 1 and row["context"] == 0)
own = [s for s in samples if s["id"] == one["id"]]
mean = lambda key: sum(s[key] for s in own) / len(own)
latency, audio = mean("latency_ms") / 1e3, mean("audio_s")
check("audio is the frames over the true rate", all(close(s["audio_s"], s["frames"] * 2048 / 44100) for s in own))
check("RTF and throughput are ratios of means", close(one["rtf"], latency / audio) and close(one["throughput_x_realtime"], audio / latency))
check("the reference's tokens are floor(21.5 audio) over the mean latency",
      close(one["tokens_per_s_reference"], sum(int(21.5 * s["audio_s"]) for s in own) / len(own) / latency))
check("frames per second are counted frames over latency", close(one["frames_per_s"], mean("frames") / latency))
check("the deviation is the population's", close(one["latency_std_s"], (sum((s["latency_ms"] / 1e3 - latency) ** 2 for s in own) / len(own)) ** 0.5))

out = os.path.join(folder, "exported")
exported = run("export", sweep, out)
files = {p: json.load(open(os.path.join(out, p + "_results.json"))) for p in ("bf16", "int8")}
check("export names the two files that it wrote", exported.returncode == 0 and len(exported.stdout.split()) == 2, exported.stderr)
check("every key of the reference is there", all(key in f for f in files.values() for key in REFERENCE_KEYS))
int8 = files["int8"]
check("the file describes the cell with the smallest batch and context", int8["cell_id"] == one["id"])
check("its figures use the reference's formulas", close(int8["avg_rtf"], one["rtf"]) and close(int8["audio_per_hour"], 3600 / one["rtf"])
      and close(int8["tokens_per_sec"], one["tokens_per_s_reference"]) and int8["samples_tested"] == 20 and int8["errors"] == 0)
check("an unsupported percentile is null with a note", int8["p99_latency_s"] is None and "p99_latency_s" in int8["notes"])
check("counted values and all cells stand beside them", close(int8["frames_per_s"], one["frames_per_s"]) and len(int8["cells"]) == CELLS // 2)

try:
    import h5py, numpy
    missing = []
    def look(name, node):
        if isinstance(node, h5py.Dataset):
            for key in ("units", "long_name"):
                if not isinstance(node.attrs.get(key), str) or not node.attrs[key]:
                    missing.append((name, key))
    with h5py.File(sweep, "r") as f:
        f.visititems(look)
        check("h5py: every dataset has units and a long_name", not missing, missing)
        summary = f["summary"][:]
        check("h5py: /summary is one read and agrees with show", {r["id"].decode(): r["status"].decode() for r in summary} ==
              {row["id"]: row["status"] for row in rows})
        check("h5py: every column of /summary has its unit and definition", all(
            f["summary"].attrs["units." + c] and f["summary"].attrs["definition." + c] for c in summary.dtype.names))
        cell = f["cells/" + one["id"]]
        check("h5py: samples and steps fit together", len(cell["samples/steps"]) == 20 and cell["samples/steps"][:].sum() == len(cell["frames/step_ms"])
              and list(cell["frames/offset"][:]) == list(numpy.cumsum(cell["samples/steps"][:]) - cell["samples/steps"][:]))
        check("h5py: the trace has t_ns as its dimension scale", all(
            cell["trace"][c].dims[0][0] == cell["trace/t_ns"] for c in cell["trace"] if c != "t_ns"))
        check("h5py: unknown bytes are NaN", numpy.isnan(cell["trace/device_used_bytes"][:]).all())
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../results/README.md")) as r:
            readme = r.read()
        unnamed = [c for g in ("samples", "trace", "frames", "memory") for c in cell[g] if not re.search(r"\b%s\b" % c, readme)]
        check("results/README.md names every column of a cell and every object of the file", not unnamed and
              all("`/%s" % name in readme for name in f), unnamed)
        check("h5py: attributes say what the file is", f.attrs["schema"] == "qsweep-sweep" and f.attrs["schema_version"] == "1.0.0"
              and f.attrs["default"] == "summary" and cell.attrs["schema"] == "qsweep-cell")
    try:
        import pandas
        frame = pandas.DataFrame(h5py.File(sweep, "r")["summary"][:])
        check("pandas: /summary is a frame in one call", len(frame) == CELLS and frame.frames_per_s.isna().sum() == 2)
    except ImportError:
        skip("pandas: /summary is a frame in one call", "no pandas")

    newer, other = os.path.join(folder, "newer.h5"), os.path.join(folder, "other.h5")
    for path, version in ((newer, "1.7.3"), (other, "2.0.0")):
        shutil.copy(sweep, path)
        with h5py.File(path, "r+") as f:
            f.attrs["schema_version"] = version
            f["cells"][one["id"]].attrs["schema_version"] = version
            config = json.loads(f["cells"][one["id"]]["config"].attrs["json"])
            config["an_axis_of_the_future"] = 7
            f["cells"][one["id"]]["config"].attrs["json"] = json.dumps(config)
            if version == "1.7.3":
                old = f["summary"][:]
                keep = [(n, old.dtype[n]) for n in old.dtype.names if n not in ("step_ms_p99", "codec")] + [("future", "f8")]
                new = numpy.zeros(len(old), keep)
                for n, _ in keep[:-1]:
                    new[n] = old[n]
                del f["summary"]
                f["summary"] = new
    check("a changed file is refused and --force reads it", run("show", newer).returncode == 1 and "its checksum does not match" in
          run("show", newer).stderr and run("show", newer, "--force").returncode == 0)
    future = [json.loads(line) for line in run("show", newer, "--force", "-o", "jsonl").stdout.splitlines()]
    check("a newer minor version is read: unknown columns ignored, missing ones unknown", len(future) == CELLS and
          all(r["step_ms_p99"] is None and r["codec"] == "off" and r["rtf"] == by_id[r["id"]]["rtf"] for r in future))
    check("a newer minor version's cells are read without the axes that nobody knows yet",
          len(run("show", newer, "--force", "--samples", "-o", "jsonl").stdout.splitlines()) == len(samples))
    refused = run("show", other, "--force")
    check("another major version is refused by its number", refused.returncode == 1 and "schema version 2.0.0, this qsweep reads 1.x"
          in refused.stderr, refused.stderr)
except ImportError:
    skip("h5py reads the merged file", "no h5py")

os.remove(os.path.join(results, "cells", ids[3][:2], "cell-%s.h5" % ids[3]))
with open(os.path.join(results, "cells", ids[0][:2], "cell-%s.h5" % ids[0]), "r+b") as f:
    f.truncate(5000)
with open(os.path.join(results, "progress.jsonl"), "w") as f:
    f.write('{"time":"2026-01-31T12:00:00Z","event":"end","id":"%s","rank":3,"process":0,"pid":77,"status":"crashed",'
            '"seconds":1.5,"host":"node01","reason":"killed"}\nno json\n{"cut' % ids[0])
merged = run("merge", results)
rows = {r["id"]: r for r in map(json.loads, run("show", sweep, "-o", "jsonl").stdout.splitlines())}
check("a damaged cell file becomes a row with its reason and the merge goes on", merged.returncode == 0 and
      rows[ids[0]]["status"] == "invalid" and "cut short: 5000 bytes" in rows[ids[0]]["reason"] and "1 damaged" in merged.stderr, merged.stderr)
if "h5py" in sys.modules:
    with h5py.File(sweep, "r") as f:
        events = f["events"][:]
    check("lines of progress.jsonl become /events, what is no JSON is left out", len(events) == 1 and events[0]["rank"] == 3
          and events[0]["text"] == b"killed" and events[0]["seconds"] == 1.5)

parts = [os.path.join(folder, p) for p in "ab"]
for i, part in enumerate(parts):
    make(part, 4, i, 1)
check("several inputs need -o", run("merge", *parts).returncode == 2)
both = os.path.join(folder, "both.h5")
check("folders merge into one file", run("merge", *parts, "-o", both, "--verify").returncode == 0
      and len(run("show", both, "-o", "jsonl").stdout.splitlines()) == 4)

for name, args, rc in (("no input", ["merge"], 2), ("an unknown option", ["show", "--nope", sweep], 2), ("a missing file", ["show", folder + "/x.h5"], 1), ("a file that is no HDF5", ["show", __file__], 1),
                       ("an unknown format", ["show", sweep, "-o", "xml"], 2), ("a folder without results", ["merge", folder], 1),
                       ("export without a folder", ["export", sweep], 2)):
    r = run(*args)
    check("%s exits with %d and one line" % (name, rc), r.returncode == rc and r.stdout == "" and 1 <= len(r.stderr.splitlines()) <= 2, r.stderr)

with open(both) as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    r = subprocess.run([QSWEEP, "show", both], capture_output=True, text=True, env=dict(os.environ, HDF5_USE_FILE_LOCKING="TRUE"))
    check("a lock that HDF5 cannot get is explained", r.returncode == 1 and "HDF5_USE_FILE_LOCKING=FALSE" in r.stderr, r.stderr)
    check("without that variable a locked file is read all the same", run("show", both).returncode == 0)

# Damaged merged files, forced: HDF5 itself crashes or loops on some of them, the command must not.
chance = random.Random(SEED)
print("# SEED=%d" % SEED)
with open(both, "rb") as f:
    whole = f.read()
bad = []
for i in range(40):
    data = bytearray(whole)
    if i % 4 == 0:
        del data[chance.randrange(len(data)):]
    else:
        for _ in range(chance.choice((1, 5, 40))):
            data[chance.randrange(512, len(data))] = chance.randrange(256)
    hurt = os.path.join(folder, "hurt.h5")
    with open(hurt, "wb") as f:
        f.write(data)
    plain, forced = run("show", hurt), run("show", hurt, "--force", "--samples", "-o", "csv")
    if plain.returncode != (0 if bytes(data) == whole else 1) or forced.returncode not in (0, 1) or (forced.returncode == 1 and not forced.stderr):
        bad.append((i, plain.returncode, forced.returncode, forced.stderr))
check("40 damaged files are refused, and read by force end with 0 or 1", not bad, bad)

shutil.rmtree(folder)
done()
