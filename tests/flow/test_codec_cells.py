#!/usr/bin/python3
"""Cells with a codec: time, memory and kept audio; what speech streams equals what one pass decodes."""
import glob, os, struct, subprocess, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from flow import QSWEEP, Sandbox, check, done, rows

FRAMES, HOP = 45, 2048  # more than a first chunk of 8 and one of 32


def samples(path):
    """16-bit samples of a RIFF file whose data chunk is the last."""
    with open(path, "rb") as f:
        data = f.read()
    at = data.index(b"data")
    size = struct.unpack("<I", data[at + 4:at + 8])[0]
    return data[at + 8:at + 8 + size]


def speech_is_one_pass(box):
    codes, spoken, decoded = (os.path.join(box.dir, name) for name in ("c.json", "spoken.wav", "decoded.wav"))
    run = lambda *args: subprocess.run([QSWEEP, *args], capture_output=True, timeout=120)
    r = run("generate", box.model, "--text", "Streaming.", "--frames", str(FRAMES), "--codes", codes, "--wav", spoken)
    check("generate writes codes and sound", r.returncode == 0, r)
    r = run("codec", "decode", box.model, "--codes", codes, "--wav", decoded, "--chunk", "64")
    check("the codes of an utterance decode in one pass", r.returncode == 0, r)
    a, b = samples(spoken), samples(decoded)
    check("speech in chunks of 8 and 32 frames has the samples of one pass, bit for bit (%d bytes)" % len(a),
          len(a) == FRAMES * HOP * 2 and a == b, "%d and %d bytes" % (len(a), len(b)))


def cells(box):
    job = box.job("{codec: [off, fp32, bf16, int8]}", extra="audio: keep", samples=2, max_new_tokens=12)
    run = box.run(job)
    found = {r["codec"]: r for r in rows(run.output)}
    check("cells without and with each codec are ok", run.rc == 0 and {r["status"] for r in found.values()} == {"ok"}
          and len(found) == 4, run.err)
    check("a codec takes time in every cell that has one, and none in the one without",
          all((r["codec_ms_mean"] > 0) == (name != "off") for name, r in found.items()),
          {name: r["codec_ms_mean"] for name, r in found.items()})
    check("the codec's memory shrinks from FP32 to BF16 to INT8 and is absent without",
          found["fp32"]["vram_baseline_mb"] > found["bf16"]["vram_baseline_mb"] > found["int8"]["vram_baseline_mb"]
          > found["off"]["vram_baseline_mb"], {name: r["vram_baseline_mb"] for name, r in found.items()})
    kept = sorted(os.path.basename(p) for p in glob.glob(os.path.join(run.output, "audio", "*")))
    want = sorted("%s-text%d.wav" % (r["id"], t) for name, r in found.items() if name != "off" for t in range(2))
    check("audio: keep leaves the first sound of every text, named by the cell's id", kept == want, (kept, want))
    sizes = {len(samples(os.path.join(run.output, "audio", name))) for name in kept}
    check("a kept sound is as long as its 12 frames", sizes == {12 * HOP * 2}, sizes)
    quiet = box.run(box.job("{codec: [bf16]}", max_new_tokens=4))
    check("without audio: keep no sound is left", quiet.rc == 0 and not os.path.exists(os.path.join(quiet.output, "audio")),
          quiet.err)


with Sandbox() as box:
    box.model += "-codec"
    subprocess.run([QSWEEP, "synth", box.model, "--shape", "s1-nano", "--seed", "1", "--codec"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    speech_is_one_pass(box)
    cells(box)
done()
