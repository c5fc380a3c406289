#!/usr/bin/env python3
"""qsweep generate from the command line, against the vectors of tests/golden/dualar-a."""
import json, os, struct, subprocess, sys, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QSWEEP = os.path.join(os.environ.get("QSWEEP_BUILD", os.path.join(ROOT, "build")), "qsweep")
DUALAR = os.path.join(ROOT, "tests/golden/dualar-a")
failed = count = 0


def check(sentence, good, detail=""):
    global failed, count
    count += 1
    failed += not good
    print("ok" if good else "not ok", count, "-", sentence)
    if not good and detail:
        print("\n".join("# " + line for line in str(detail).splitlines()[-20:]))
    sys.stdout.flush()


def generate(*args, checkpoint=DUALAR):
    return subprocess.run([QSWEEP, "generate", checkpoint, *map(str, args)], capture_output=True, timeout=120,
                          stdin=subprocess.DEVNULL)


def vector(name):
    with open(os.path.join(DUALAR, "expected.safetensors"), "rb") as f:
        data = f.read()
    size = struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8:8 + size])[name]
    begin, end = entry["data_offsets"]
    rows, columns = entry["shape"]
    values = struct.unpack("<%di" % ((end - begin) // 4), data[8 + size + begin:8 + size + end])
    return [list(values[r * columns:(r + 1) * columns]) for r in range(rows)]


def frames_of(output):
    try:
        return json.loads(output)["frames"]
    except ValueError:
        return None


def transposed(rows):
    return [list(c) for c in zip(*rows)]


def main():
    tmp = tempfile.mkdtemp()
    out = os.path.join(tmp, "out.json")
    with open(os.path.join(DUALAR, "expected.json"), encoding="utf-8") as f:
        texts = json.load(f)["texts"]
    exact = ["--precision", "fp32", "--greedy", "--frames", "24"]

    voice = os.path.join(tmp, "voice.json")
    with open(voice, "w") as f:
        json.dump(vector("refcodes"), f)
    for name, text, extra in (("short", texts[0], []), ("multi", texts[3], []),
                              ("voice", texts[0], ["--voice", voice, "--voice-text", "a voice sample"])):
        for penalty in ("1.0", "1.3"):
            r = generate("--text", text, *exact, "--repetition-penalty", penalty, "--codes", out, *extra)
            prompt = vector("prompt." + name)
            want = [row[len(prompt[0]):] for row in vector("greedy.%s.fp32.pen%s" % (name, penalty))]
            try:
                with open(out) as f:
                    got = json.load(f)
                good = r.returncode == 0 and got["prompt"] == prompt and got["frames"] == transposed(want)
            except (OSError, ValueError):
                good = False
            check("prompt and greedy fp32 frames of %s with penalty %s equal the original's" % (name, penalty), good, r.stderr.decode())

    path = os.path.join(tmp, "text.txt")
    with open(path, "w", encoding="utf-8") as f:
        f.write(texts[0])
    r = generate("--text-file", path, *exact, "--repetition-penalty", "1.3", "--codes", "-")
    want = transposed([row[48:] for row in vector("greedy.short.fp32.pen1.3")])
    check("--codes - writes the same JSON alone to standard output, from a text file",
          frames_of(r.stdout) == want and b"frames/s" in r.stderr, r.stderr.decode())

    ids = os.path.join(tmp, "ids.json")
    with open(ids, "w") as f:
        json.dump(vector("prompt.voice"), f)
    common = ["--prompt-ids", ids, "--codes", "-", "--frames", "12"]
    a = frames_of(generate(*common, "--seed", "5").stdout)
    b = frames_of(generate(*common, "--seed", "5", "--threads", "2", "--kv", "bf16", "--precision", "bf16").stdout)
    c = frames_of(generate(*common, "--seed", "6").stdout)
    check("a seed fixes the draw", a is not None and a == b and len(a) == 12)
    check("another seed draws otherwise", c is not None and a != c)

    r = generate("--prompt-ids", ids, "--frames", "3")
    check("without --codes a summary with frames, speed, real time and stop reason is printed",
          r.returncode == 0 and all(w in r.stdout for w in (b"frames/s", b"x real time", b"stopped by length")), r.stdout + r.stderr)
    r = generate("--prompt-ids", ids, "--max-seq-len", "90", "--frames", "50", "--codes", "-")
    check("a full cache ends the utterance and says so",
          r.returncode == 0 and json.loads(r.stdout)["stop"] == "cache full" and len(json.loads(r.stdout)["frames"]) == 5, r.stderr.decode())

    for precision in ("fp32", "bf16", "int8"):
        for device in ("cpu", "cpu_ref"):
            for rules in ("s1", "s2"):
                r = generate("--prompt-ids", ids, "--frames", "4", "--precision", precision, "--device", device, "--sampling",
                             rules, "--head", "semantic", "--codes", "-")
                frames = frames_of(r.stdout)
                good = frames is not None and 1 <= len(frames) <= 4 and all(t == 460 or 471 <= t <= 4566 for t, *_ in frames)
                check("%s with %s rules on %s draws only semantic tokens or im_end" % (precision, rules, device), good, r.stderr.decode())
    r = generate("--prompt-ids", ids, "--frames", "4", "--precision", "int8", "--recipe", "legacy", "--kv", "int8")
    check("the legacy recipe and an INT8 cache decode", r.returncode == 0, r.stderr.decode())

    s2 = os.path.join(tmp, "s2")
    made = subprocess.run([QSWEEP, "synth", s2, "--shape", "s2-nano", "--seed", "1", "--no-measure"], capture_output=True, timeout=120)
    with open(os.path.join(tmp, "five.json"), "w") as f:
        json.dump([[1, 2, 3, 4, 5]], f)
    r = generate("--prompt-ids", os.path.join(tmp, "five.json"), "--frames", "6", "--codes", "-", checkpoint=s2)
    frames = frames_of(r.stdout)
    check("an S2 checkpoint decodes from ids, by S2 rules of its own accord",
          made.returncode == 0 and frames is not None and json.loads(r.stdout)["sampling"] == "s2" and
          all(t == 514 or 547 <= t <= 4642 for t, *_ in frames), r.stderr.decode())
    r = generate("--text", "hi", checkpoint=s2)
    check("text for an S2 checkpoint is refused and --prompt-ids named", r.returncode == 1 and b"--prompt-ids" in r.stderr, r.stderr.decode())

    usage = [
        ([], "nothing to say"),
        (["--text", "a", "--prompt-ids", ids], "two prompts"),
        (["--text", "a", "--frames", "0"], "a frame count of 0"),
        (["--text", "a", "--frames", "x"], "a frame count that is no number"),
        (["--text", "a", "--temperature", "2"], "a temperature out of range"),
        (["--text", "a", "--top-p", "nan"], "a top-p that is no number"),
        (["--text", "a", "--precision", "bf17"], "an unknown precision"),
        (["--text", "a", "--device", "gpu"], "an unknown device"),
        (["--text", "a", "--voice", voice], "a voice without its text"),
        (["--text", "a", "--recipe", "legacy", "--precision", "bf16"], "a recipe without int8"),
        (["--text", "a", "--max-seq-len", "5"], "a prompt longer than the cache"),
        (["--text", "a", "--threads", "0"], "a thread count of 0"),
        (["--text", "a", "--no-such-option"], "an unknown option"),
    ]
    for args, what in usage:
        r = generate(*args)
        check("%s ends with exit status 2, a reason and no output" % what, r.returncode == 2 and r.stderr and not r.stdout,
              "%d %s" % (r.returncode, r.stderr.decode()))

    bad, never = os.path.join(tmp, "bad.json"), os.path.join(tmp, "never.json")
    for text, what in (("[[1, 2], [0]]", "ragged ids"), ("[[99999], [0], [0], [0], [0]]", "an id outside the vocabulary"),
                       ("[[480], [4096], [0], [0], [0]]", "a code outside its codebook"), ("[[480]", "cut JSON"),
                       ("[[480], [0]]", "too few rows"), ("", "an empty file")):
        with open(bad, "w") as f:
            f.write(text)
        r = generate("--prompt-ids", bad, "--codes", never)
        check("%s ends with exit status 1, a line naming the file, and no output file" % what,
              r.returncode == 1 and b"bad.json" in r.stderr and not os.path.exists(never), "%d %s" % (r.returncode, r.stderr.decode()))
    r = generate("--prompt-ids", ids, "--memory-limit", "3MB")
    check("a memory limit below the model's needs fails with the missing bytes", r.returncode == 1 and b"missing" in r.stderr, r.stderr.decode())
    r = generate("--prompt-ids", ids, "--frames", "2", "--codes", os.path.join(tmp, "no/such/folder/x.json"))
    check("an unwritable output fails and is named", r.returncode == 1 and b"no/such/folder" in r.stderr, r.stderr.decode())
    r = generate("--prompt-ids", ids, "--frames", "2", "--codes", "/dev/full")
    check("a full disk fails and the device file stays", r.returncode == 1 and os.path.exists("/dev/full"), r.stderr.decode())
    r = generate("--text", "a", checkpoint=os.path.join(tmp, "nowhere"))
    check("a missing checkpoint fails and is named", r.returncode == 1 and b"nowhere" in r.stderr, r.stderr.decode())
    with open(path, "wb") as f:
        f.write(b"bad \xff\xfe text")
    r = generate("--text-file", path)
    check("text that is not UTF-8 fails with a reason", r.returncode == 1 and r.stderr, "%d %s" % (r.returncode, r.stderr.decode()))
    check("nothing half-written is left behind", not [n for n in os.listdir(tmp) if n.endswith(".tmp")], os.listdir(tmp))
    print("1..%d" % count)
    return failed > 0


sys.exit(main())
