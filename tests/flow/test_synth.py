#!/usr/bin/env python3
"""qsweep synth and inspect from the command line. The files are read here with Python's own zipfile, pickle and json, so
that what our writer makes is judged by another reader than ours."""
import collections, glob, hashlib, json, os, pickle, resource, shutil, signal, struct, subprocess, sys, tempfile, time
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QSWEEP = os.path.join(os.environ.get("QSWEEP_BUILD", os.path.join(ROOT, "build")), "qsweep")
WORK = tempfile.mkdtemp(prefix="test_synth.")
failed = count = 0


def check(sentence, good, detail=""):
    global failed, count
    count += 1
    failed += not good
    print("ok" if good else "not ok", count, "-", sentence)
    if not good and detail:
        print("\n".join("# " + line for line in str(detail).splitlines()[-20:]))
    sys.stdout.flush()


def skip(sentence, reason):
    global count
    count += 1
    print("ok", count, "-", sentence, "# skip", reason)


def qsweep(*args, **more):
    return subprocess.run([QSWEEP, *map(str, args)], capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
                          **more)


def folder(name):
    return os.path.join(WORK, name)


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def hashes(path):
    return {n: sha256(os.path.join(path, n)) for n in sorted(os.listdir(path)) if not n.startswith(".")}


ITEM = {"FloatStorage": 4, "BFloat16Storage": 2, "BoolStorage": 1}


def read_torch(path):
    """The state dict of a torch.save file as name → (storage class, shape, bytes), and what is wrong with the archive."""
    archive, faults = zipfile.ZipFile(path), []
    if archive.testzip() is not None:
        faults.append("a CRC32 is wrong")
    names = archive.namelist()
    top = names[0].split("/")[0]
    with open(path, "rb") as f:
        for info in archive.infolist():
            f.seek(info.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", f.read(4))
            if (info.header_offset + 30 + name_length + extra_length) % 64:
                faults.append(info.filename + " is not aligned")
            if info.compress_type != zipfile.ZIP_STORED or not info.filename.startswith(top + "/"):
                faults.append(info.filename + " is compressed or outside the folder")
    if names[0] != top + "/data.pkl" or archive.read(top + "/version") != b"3\n" or \
            archive.read(top + "/byteorder") != b"little" or len(archive.read(top + "/.data/serialization_id")) != 40:
        faults.append("the entries are not those of torch.save")

    def rebuild(storage, offset, size, stride, requires_grad, hooks):
        kind, key, elements = storage
        want, n = [], 1
        for s in reversed(size):
            want.insert(0, n)
            n *= s
        data = archive.read(top + "/data/" + key)
        if offset or tuple(want) != stride or n != elements or len(data) != n * ITEM[kind] or requires_grad:
            faults.append("a tensor does not fit its storage")
        return kind, size, data

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) == ("collections", "OrderedDict"):
                return collections.OrderedDict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return rebuild
            if module == "torch" and name in ITEM:
                return name
            raise ValueError("%s.%s" % (module, name))

        def persistent_load(self, ident):
            if ident[0] != "storage" or ident[3] != "cpu":
                faults.append("a persistent id is not a storage on the cpu")
            return ident[1], ident[2], ident[4]

    with archive.open(top + "/data.pkl") as f:
        return Reader(f).load(), faults


def test_s1():
    nano = folder("deep/nano")
    run = qsweep("synth", nano, "--shape", "s1-nano", "--seed", 1, "--codec")
    check("synth makes a checkpoint and prints its folder", run.returncode == 0 and run.stdout.strip() == nano, run.stderr)
    config = json.load(open(os.path.join(nano, "config.json")))
    record = json.load(open(os.path.join(nano, "synth.json")))
    model, faults = read_torch(os.path.join(nano, "model.pth"))
    check("model.pth obeys torch.save's container", not faults, faults)
    elements = sum(len(data) // 2 for kind, size, data in model.values())
    check("model.pth holds the parameters that synth.json states", elements == record["parameters"], elements)
    check("shapes follow the configuration",
          model["embeddings.weight"][1] == (config["vocab_size"], config["dim"]) and
          model["codebook_embeddings.weight"][1] == (config["codebook_size"] * config["num_codebooks"], config["dim"]) and
          sum(name.startswith("layers.") and name.endswith("wqkv.weight") for name in model) == config["n_layer"])
    codec, faults = read_torch(os.path.join(nano, "codec.pth"))
    kinds = collections.Counter(kind for kind, size, data in codec.values())
    check("codec.pth obeys the container and has its buffers", not faults and kinds["BFloat16Storage"] == 2 and
          kinds["BoolStorage"] == 2, faults or kinds)
    mask = codec["quantizer.post_module.causal_mask"]
    side = mask[1][0]
    check("the causal mask is a lower triangle", all(mask[2][r * side:(r + 1) * side] == b"\1" * (r + 1) + b"\0" * (side - r - 1)
                                                     for r in (0, 1, side // 2, side - 1)))
    measured = record["measured"]
    check("sampling sees a nucleus of tens of entries, slow and fast, predicted and measured",
          all(10 <= n <= 200 for n in (record["head"]["predicted_nucleus"], record["fast_head"]["predicted_nucleus"],
                                       measured["nucleus"]["median"], measured["fast_nucleus"]["median"])), record)
    check("nearly all probability is on semantic tokens", measured["semantic_mass"] > 0.9, measured)

    again, other = folder("again"), folder("other")
    qsweep("synth", again, "--shape", "s1-nano", "--seed", 1, "--codec")
    qsweep("synth", other, "--shape", "s1-nano", "--seed", 2, "--no-measure")
    check("the same seed gives the same bytes in every file", hashes(nano) == hashes(again))
    check("another seed gives other weights", hashes(nano)["model.pth"] != hashes(other)["model.pth"])
    # Known answers: a change here means that recorded seeds no longer name the same weights.
    check("seed 1 gives the weights it gave on the first machine",
          hashes(nano)["model.pth"] == "53c2ce6b50c2d616d8175a874a848e4c60d4906a9d0779931dfb457977a5a6a1" and
          hashes(nano)["codec.pth"] == "27aaa142e30cbf02f1a3762d7574ed547c777a74fe3e09e6a8649140111b78dc", hashes(nano))
    return nano


def test_s2():
    path = folder("s2")
    run = qsweep("synth", path, "--shape", "s2-nano", "--seed", 1)
    index = json.load(open(os.path.join(path, "model.safetensors.index.json")))
    shards = sorted(set(index["weight_map"].values()))
    found, sizes = {}, 0
    for shard in shards:
        with open(os.path.join(path, shard), "rb") as f:
            length = struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(length))
            header.pop("__metadata__")
            found.update({name: shard for name in header})
            sizes += os.fstat(f.fileno()).st_size - 8 - length
    check("S2 has a nested configuration and at least two shards", run.returncode == 0 and len(shards) >= 2 and
          json.load(open(os.path.join(path, "config.json")))["model_type"] == "fish_qwen3_omni", run.stderr)
    check("the index names every tensor's shard and their size", found == index["weight_map"] and
          sizes == index["metadata"]["total_size"])
    prompt = folder("prompt.json")
    json.dump([[11, 12, 13, 14]], open(prompt, "w"))
    run = qsweep("generate", path, "--prompt-ids", prompt, "--frames", 4, "--precision", "bf16", "--codes", folder("s2.json"))
    frames = json.load(open(folder("s2.json")))["frames"] if run.returncode == 0 else []
    check("a synthetic S2 decodes from ids", len(frames) >= 1 and all(len(f) == 11 for f in frames), run.stderr)
    return path


def refused(run, code, *words):
    text = run.stderr.strip()
    return run.returncode == code and all(w in text for w in words) and len(text.splitlines()) == 1


def test_refusals(nano):
    before = hashes(nano)
    run = qsweep("synth", nano)
    check("an existing folder is never overwritten", refused(run, 2, nano, "exists") and hashes(nano) == before, run.stderr)
    run = qsweep("synth", folder("x"), "--shape", "s9")
    check("an unknown shape is a usage error that lists the shapes", run.returncode == 2 and "s1-mini" in run.stderr)
    for bad in ("-1", "x", "18446744073709551616", ""):
        check("seed %r is a usage error" % bad, qsweep("synth", folder("x"), "--seed", bad).returncode == 2)
    check("no folder is a usage error", qsweep("synth").returncode == 2)
    blocker = folder("file")
    open(blocker, "w").close()
    run = qsweep("synth", os.path.join(blocker, "x"))
    check("a folder that cannot be made is one line and exit 1", refused(run, 1, blocker), run.stderr)

    run = qsweep("synth", folder("limited"), "--codec", "--no-measure",
                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000000, 5000000)))
    check("a write that fails leaves nothing", refused(run, 1, "model.pth") and not glob.glob(folder("limited*")), run.stderr)

    full = subprocess.run(["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=20m none /mnt && { \"$0\" synth /mnt/a/x "
                           "--shape s1-mini; echo rc=$?; find /mnt -type f | wc -l; }", QSWEEP], capture_output=True, text=True)
    if "rc=" not in full.stdout:
        skip("a full disk is refused before anything is written", "no file system may be mounted here")
    else:
        check("a full disk is refused before anything is written", full.stdout.split() == ["rc=1", "0"] and
              "needs 1728 MB" in full.stderr and len(full.stderr.strip().splitlines()) == 1, full.stdout + full.stderr)


def test_interrupt():
    """Stop the 1.7 GB shape as soon as its small files are there: they are compared with the published ones on the way."""
    target = folder("mini")
    run = subprocess.Popen([QSWEEP, "synth", target, "--shape", "s1-mini"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    config = specials = None
    for _ in range(600):
        here = glob.glob(target + ".tmp.*")
        if here and glob.glob(os.path.join(here[0], "model.pth*")):
            config = sha256(os.path.join(here[0], "config.json"))
            specials = sha256(os.path.join(here[0], "special_tokens.json"))
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    text = run.communicate(timeout=60)[1].decode()
    check("s1-mini's config.json and special_tokens.json are the published files (SHA-256)",
          config == "0e46c32fd452751d48a553283e16a30819ea7321b32b9bf9e4a8b9c9cc02fa50" and
          specials == "efc4b254afdf5c3898dc26bd2b7791a9cae993747d92a3176cf9ce4ccfe40526", (config, specials))
    check("SIGTERM ends it with one line, exit 1 and nothing left", run.returncode == 1 and "interrupted" in text and
          not glob.glob(target + "*"), text)


def test_inspect(nano, s2):
    run = qsweep("inspect", nano, "-o", "json", "--tensors")
    data = json.loads(run.stdout) if run.returncode == 0 else {}
    check("inspect -o json counts what synth made", data.get("parameters") == 4088960 and data.get("bytes") == 8177920 and
          data.get("dtypes") == "BF16" and len(data.get("tensors", [])) == data.get("tensor_count"), run.stderr)
    check("a synthetic checkpoint is not taken for a published one", data["published"]["verdict"] == "unknown")
    by = {m["precision"]: m for m in data["memory"]}
    check("INT8 is predicted smaller than BF16, BF16 than FP32, sums are sums",
          by["int8"]["weight_bytes"] < by["bf16"]["weight_bytes"] < by["fp32"]["weight_bytes"] and
          all(m["total_bytes"] == m["weight_bytes"] + m["scale_bytes"] + m["kv_bytes"] + m["codec_bytes"]
              for m in data["memory"]), data["memory"])
    text = qsweep("inspect", nano)
    check("inspect prints the parts, the verdict and the cards", text.returncode == 0 and
          all(w in text.stdout for w in ("4,088,960", "published    unknown", "slow layers", "can run?", "H200")), text.stderr)
    check("inspect reads S2", "family       S2" in qsweep("inspect", s2).stdout)
    quantized = folder("int8")
    run = qsweep("quantize", nano, "--mode", "int8", "--output", quantized)
    data = json.loads(qsweep("inspect", quantized, "-o", "json").stdout or "{}")
    check("inspect reads a quantized folder and predicts INT8 alone", data.get("quantization") == "torchao" and
          [m["precision"] for m in data.get("memory", [])] == ["int8"], run.stderr)
    check("a folder that is no checkpoint is one line and exit 1", refused(qsweep("inspect", WORK), 1, WORK))
    check("a missing folder is one line and exit 1", refused(qsweep("inspect", folder("none")), 1, "none"))
    check("an unknown format is a usage error", qsweep("inspect", nano, "-o", "xml").returncode == 2)
    full = subprocess.run([QSWEEP, "inspect", nano], stdout=open("/dev/full", "w"), stderr=subprocess.PIPE, text=True)
    check("a full output is an error", full.returncode == 1 and "standard output" in full.stderr, full.stderr)


try:
    nano = test_s1()
    s2 = test_s2()
    test_refusals(nano)
    test_interrupt()
    test_inspect(nano, s2)
finally:
    shutil.rmtree(WORK, ignore_errors=True)
print("1..%d" % count)
sys.exit(failed != 0)
