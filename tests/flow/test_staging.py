#!/usr/bin/python3
"""weights.share: the same codes by every way, nothing left behind whatever dies, and a clear word where there is no room."""
import os, signal, subprocess, sys, time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from flow import *

SWEEP = "{precision: [bf16, int8], context: [0, 4]}"


def codes(output):
    import h5py
    with h5py.File(output + "/sweep.h5", "r") as f:
        return {name: list(cell["samples/codes_hash"][...]) for name, cell in f["cells"].items()}


def facts(output, key):
    import h5py
    with h5py.File(output + "/sweep.h5", "r") as f:
        return {dict(cell["provenance/facts"].attrs).get(key) for cell in f["cells"].values()}


def nodes(output):
    import h5py
    with h5py.File(output + "/sweep.h5", "r") as f:
        table = f["staging/nodes"][...]
    return [{n: row[n].decode() if isinstance(row[n], bytes) else row[n] for n in table.dtype.names} for row in table]


def ways(box, place):
    env = {"QSWEEP_STAGE_DIR": place}
    job = box.job(SWEEP, samples=2)
    plain = box.run(job, "--set", "weights.share=none")
    check("none stages nothing", plain.rc == 0 and nodes(plain.output) == [] and facts(plain.output, "weights_share") == {None}, plain.err)
    checksums = set()
    for mode, ranks in (("shared", 0), ("shared", 3), ("shard", 1), ("shard", 3)):
        run = box.run(job, "--set", "weights.share=" + mode, ranks=ranks, env=env)
        table = nodes(run.output)
        checksums |= {(row["form"], row["checksum"]) for row in table}
        check("%s with %d ranks decodes the very codes that cells decode from the model's own files" % (mode, ranks or 1),
              run.rc == 0 and codes(run.output) == codes(plain.output), run.err)
        check("its cells and /staging say how the weights came (%s, %d)" % (mode, ranks),
              facts(run.output, "weights_share") == {mode} and sorted(row["form"] for row in table) == ["as it is", "torchao"]
              and all(row["bytes"] > 0 and row["total_s"] > 0 and row["quantize_s"] > 0 for row in table), table)
        check("nothing is left in the memory file system (%s, %d)" % (mode, ranks), not os.listdir(place), os.listdir(place))
    quantized = os.path.join(box.dir, "nano-int8")
    subprocess.run([QSWEEP, "quantize", box.model, "--mode", "int8", "--output", quantized], check=True, capture_output=True)
    check("one checksum a form, whatever way and number of ranks", len(checksums) == 2, checksums)


def whole_file(box, place):
    """What cells map while they run is the file that `qsweep quantize` writes."""
    env = {"QSWEEP_STAGE_DIR": place}
    run = box.start(box.job("{precision: int8, context: 1..8}", samples=2, max_new_tokens=200), "--set", "weights.share=shard", ranks=2, env=env)
    found = eventually(lambda: events(run.output, "start") and [os.path.join(d, "model.safetensors") for d, _, files in os.walk(place)
                                                               if "model.safetensors" in files])
    with open(found[0], "rb") as a, open(os.path.join(box.dir, "nano-int8", "model.safetensors"), "rb") as b:
        check("the staged file is byte for byte the one that quantize writes", a.read() == b.read())
    modes = [oct(os.stat(p).st_mode & 0o777) for p in (found[0], os.path.dirname(os.path.dirname(found[0])))]
    check("it is read-only in a folder of its user alone", modes == ["0o400", "0o700"], modes)
    return run


def deaths(box, place, run):
    run.signal(signal.SIGKILL)
    run.wait()
    check("mpirun killed: the staged weights go with its ranks", eventually(lambda: not os.listdir(place), 20), os.listdir(place))
    env = {"QSWEEP_STAGE_DIR": place}
    job = box.job("{precision: int8, context: 1..8}", samples=2, max_new_tokens=200)
    for name, number in (("SIGKILL", signal.SIGKILL), ("SIGTERM", signal.SIGTERM)):
        run = box.start(job, "--set", "weights.share=shared", env=env)
        eventually(lambda: events(run.output, "start"))
        run.signal(number)
        run.wait()
        check("%s to the launcher: the staged weights are removed" % name, eventually(lambda: not os.listdir(place), 20), os.listdir(place))
    for round_ in range(3 * ROUNDS):
        run = box.start(job, "--set", "weights.share=shared", env=env)
        time.sleep(chance.uniform(0, 0.4))
        run.signal(signal.SIGKILL)
        run.wait()
        if not eventually(lambda: not os.listdir(place), 20):
            break
    check("killed at any moment of staging, nothing is left", not os.listdir(place), os.listdir(place))
    # A power cut takes the spawner too: what is left then goes at the next start.
    orphan = os.path.join(place, "qsweep-%d-00000000deadbeef" % os.getuid())
    os.mkdir(orphan, 0o700)
    for name in ("in-use", "weights"):
        open(os.path.join(orphan, name), "w").close()
    stranger = os.path.join(place, "qsweep-%d-notours" % os.getuid())
    os.mkdir(stranger)
    done = box.run(box.job(), "--set", "weights.share=shared", env=env)
    check("what a dead launcher left is removed at the next start, and only that",
          done.rc == 0 and not os.path.exists(orphan) and os.path.exists(stranger), done.err)
    os.rmdir(stranger)


def no_room(box):
    small = os.path.join(box.dir, "small")
    os.mkdir(small)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode:
        return skip("a memory file system that is too small is told before anything is read", "no right to mount")
    try:
        env = {"QSWEEP_STAGE_DIR": small}
        run = box.run(box.job(), "--set", "weights.share=shared", env=env)
        check("a memory file system that is too small is told before anything is read",
              run.rc == 1 and "MB free" in run.err and "weights.share=none" in run.err and not os.listdir(small), run.err)
        run = box.run(box.job(), "--set", "weights.share=shard", ranks=2, env=env)
        check("on several ranks too, and no rank hangs", run.rc == 1 and "MB free" in run.err, run.err)
    finally:
        subprocess.run(["umount", small], check=True)


with Sandbox() as box:
    place = os.path.join(box.dir, "shm")
    os.mkdir(place)
    ways(box, place)
    deaths(box, place, whole_file(box, place))
    no_room(box)
done()
