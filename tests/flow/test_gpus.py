#!/usr/bin/python3
"""Ranks and GPUs on a machine without one: placement, sharing, occupied GPUs, restrictions. The driver is the test double
of tests/fake/nvml.c; no worker can compute on it, so a cell that is started there ends as invalid, and says where."""
import os, signal, subprocess, sys, threading, time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from flow import *

A, B = ("GPU-%s-0000-0000-0000-000000000000" % (8 * c) for c in "ab")
H200 = "gpu %s NVIDIA_H200 150000 3 00000000:18:00.0\n"
A100 = "gpu %s NVIDIA_A100 40000 3 00000000:2A:00.0\n"


class Driver:
    """What the double says; as an environment for runs."""

    def __init__(self, box, text):
        self.path = os.path.join(box.dir, "driver-%d" % next(box.numbers))
        self.says(text)

    def says(self, text):
        with open(self.path + ".next", "w") as f:
            f.write(text)
        os.rename(self.path + ".next", self.path)

    def env(self, **more):
        return {"LD_LIBRARY_PATH": os.path.join(BUILD, "tests", "fake"), "QSWEEP_FAKE_NVML": self.path, **more}


def facts(output):
    import h5py
    with h5py.File(os.path.join(output, "sweep.h5"), "r") as f:
        return [dict(cell["provenance/facts"].attrs) for cell in f["cells"].values()]


def places(output):
    return sorted(row["place"] for row in rows(output))


def cuda(box, *args, env, **kw):
    return box.run(box.job(kw.pop("sweep", "{precision: [bf16, int8]}"), kw.pop("extra", "")), "--set", "device=cuda", *args,
                   env=env, **kw)


def placement(box):
    two = Driver(box, H200 % A + H200 % B)
    run = cuda(box, ranks=4, env=two.env())
    check("4 ranks on 2 GPUs are refused once, with both ways out, and leave nothing",
          run.rc in (1, 2) and run.err.count("4 ranks, but they see 2 GPUs") == 1 and "share_gpus=yes" in run.err
          and "mpirun -n 2" in run.err and not os.path.exists(run.output), run.err)
    run = box.run(box.job(), ranks=4, env=two.env())
    check("cells of the CPU run on 4 ranks whatever the GPUs", run.rc == 0 and statuses(run.output) == ["ok", "ok"], run.err)
    run = box.run(box.job(), "--set", "share_gpus=yes", ranks=4, env=two.env())
    check("share_gpus=yes is accepted there", run.rc == 0 and statuses(run.output) == ["ok", "ok"], run.err)

    run = cuda(box, "--set", "share_gpus=yes", ranks=4, env=two.env(), sweep="{precision: [bf16], context: [0, 8, 16, 24]}")
    check("with share_gpus 4 ranks use both GPUs, by UUID",
          set(places(run.output)) == {"cuda:" + A, "cuda:" + B} and {f["gpu_ranks"] for f in facts(run.output)} == {"2"},
          (run.err, places(run.output)))
    run = cuda(box, ranks=2, env=two.env(), sweep="{precision: [bf16], context: [0, 8]}")
    check("2 ranks get a GPU each",
          places(run.output) == ["cuda:" + A, "cuda:" + B]
          and {f["gpu_uuid"] for f in facts(run.output)} == {A, B} and run.rc != 0, (run.err, places(run.output)))
    run = cuda(box, env=two.env(CUDA_VISIBLE_DEVICES="1"))
    check("CUDA_VISIBLE_DEVICES=1 places a lone rank on the second card", set(places(run.output)) == {"cuda:" + B}, run.err)
    run = cuda(box, env=two.env(CUDA_VISIBLE_DEVICES="GPU-b"))
    check("so does the beginning of its UUID", set(places(run.output)) == {"cuda:" + B}, run.err)
    run = cuda(box, env=two.env(CUDA_VISIBLE_DEVICES="7"))
    check("a card that is not there is said to be missing",
          "there is no device 7" in " ".join(r["reason"] for r in rows(run.output)), (run.err, rows(run.output)))
    divided = Driver(box, H200 % A + "mig MIG-1 H200_MIG_1g 16000 1\nmig MIG-2 H200_MIG_1g 16000 1\n")
    run = cuda(box, ranks=2, env=divided.env(), sweep="{precision: [bf16], context: [0, 8]}")
    check("the instances of a divided card are places of their own", places(run.output) == ["cuda:MIG-1", "cuda:MIG-2"],
          (run.err, places(run.output)))


def automatic(box):
    text = open(box.job()).read().replace("device: cpu", "device: auto")
    job = os.path.join(box.dir, "auto.yaml")
    with open(job, "w") as f:
        f.write(text)
    one = Driver(box, H200 % A)
    with_gpu, without = box.run(job, env=one.env()), box.run(job, env=one.env(CUDA_VISIBLE_DEVICES=""))
    built = "no CUDA" not in subprocess.run([QSWEEP, "generate", box.model, "--text", "x", "--frames", "1", "--device", "cuda"],
                                            capture_output=True, text=True).stderr.replace("without CUDA", "no CUDA")
    wanted = {"cuda:" + A} if built else {"cpu"}
    check("device: auto is cuda where a GPU is seen and CUDA was built in (here: %s)" % built,
          set(places(with_gpu.output)) == wanted, (with_gpu.err, places(with_gpu.output)))
    check("and the CPU where every GPU is hidden", statuses(without.output) == ["ok", "ok"], without.err)


def occupied(box):
    stranger = subprocess.Popen(["sleep", "300"])
    try:
        busy = Driver(box, H200 % A + "process %d 12000\n" % stranger.pid)
        run = cuda(box, "--set", "foreign=wait", "--set", "foreign_wait=0.3", env=busy.env())
        reasons = {r["reason"] for r in rows(run.output)}
        check("foreign: wait ends in contaminated rows that name pid, program and bytes",
              statuses(run.output) == ["contaminated"] * 2 and run.rc == 3
              and all("process %d (sleep, 12000 MB)" % stranger.pid in r for r in reasons), (run.err, reasons))
        check("and no worker was started", not events(run.output, "start"), events(run.output))
        run = cuda(box, "--set", "foreign_wait=0.3", env=busy.env())
        check("foreign: mark starts the worker all the same and records who was there",
              len(events(run.output, "start")) == 2 and all("sleep" in f["gpu_foreign"] for f in facts(run.output)), run.err)
        late = Driver(box, H200 % A + "process %d na\n" % stranger.pid)
        threading.Timer(1.0, late.says, [H200 % A]).start()
        run = cuda(box, "--set", "foreign=wait", "--set", "foreign_wait=60", env=late.env())
        check("a GPU that becomes free within the bound is used",
              len(events(run.output, "start")) == 2 and "bytes unknown" in run.err
              and all("gpu_foreign" not in f for f in facts(run.output)), run.err)
    finally:
        stranger.kill()
        stranger.wait()
    hidden = Driver(box, H200.replace(" 3 ", " 9000 ") % A)
    run = cuda(box, "--set", "foreign=wait", "--set", "foreign_wait=0", env=hidden.env())
    check("memory in use by processes that NVML does not list counts as well",
          {r["reason"] for r in rows(run.output)} ==
          {"not measured: the GPU stayed in use by others: 9000 MB in use by processes that NVML does not show here"},
          rows(run.output))
    run = cuda(box, "--set", "foreign=ignore", env=hidden.env())
    check("foreign: ignore takes no notice", len(events(run.output, "start")) == 2 and statuses(run.output) == ["invalid"] * 2, run.err)
    forever = Driver(box, H200.replace(" 3 ", " 9000 ") % A)
    run = box.start(box.job(), "--set", "device=cuda", "--set", "foreign=wait", env=forever.env())
    eventually(lambda: os.path.exists(os.path.join(run.output, "progress.jsonl")))
    time.sleep(0.5)
    run.signal(signal.SIGTERM)
    check("a launcher that waits for a GPU leaves at once on SIGTERM", run.wait(20).rc == 1, run.err)


def restrictions(box):
    mixed = Driver(box, H200 % A + A100 % B)
    run = cuda(box, "--set", "gpu={memory: 100GB}", ranks=2, env=mixed.env())
    check("gpu.memory keeps cells on cards that have it", set(places(run.output)) == {"cuda:" + A}, run.err)
    run = cuda(box, "--set", "gpu={name: a100}", ranks=2, env=mixed.env())
    check("gpu.name picks the model", set(places(run.output)) == {"cuda:" + B}, run.err)
    run = cuda(box, "--set", "gpu={name: B300}", ranks=2, env=mixed.env())
    check("cells for which there is no card say what was wanted and what is here",
          statuses(run.output) == ["invalid"] * 2 and all("B300" in r["reason"] and "NVIDIA A100 with 40 GB" in r["reason"]
                                                          for r in rows(run.output)), rows(run.output))
    for schedule in "static", "dynamic":
        run = cuda(box, "--set", "gpu={each_model: yes}", "--set", "schedule=" + schedule, ranks=2, env=mixed.env())
        check("gpu.each_model runs every cell once on each model of card (%s)" % schedule,
              places(run.output) == ["cuda:" + A] * 2 + ["cuda:" + B] * 2 and len({r["id"] for r in rows(run.output)}) == 4,
              (run.err, places(run.output)))
    again = cuda(box, "--set", "gpu={each_model: yes}", ranks=2, env=mixed.env(CUDA_VISIBLE_DEVICES="0"))
    check("a number is not trusted among cards of different models", "CUDA_DEVICE_ORDER=PCI_BUS_ID" in again.err
          + " ".join(r["reason"] for r in rows(again.output)), again.err)


with Sandbox() as box:
    placement(box)
    automatic(box)
    occupied(box)
    restrictions(box)
done()
