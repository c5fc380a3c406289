#!/usr/bin/env python3
"""The report of a real small sweep: made of the file's own numbers, self-contained, escaped, without console errors."""
import base64, glob, html.parser, json, os, re, shutil, subprocess, sys, tempfile

from flow import BUILD, QSWEEP, ROOT, check, done, skip

PYTHON = os.path.join(BUILD, "python")
MODEL = os.path.join(ROOT, "tests/golden/dualar-a")
EVIL = "Tags <script>alert(1)</script> & \"quotes\"."
JOB = """
model: %s
sweep: {precision: [bf16, int8], batch: [1, 2]}
workload: {samples: 3, warmup: 0, processes: 2, length: fixed, max_new_tokens: 12, quality: on, texts: [%s, "Second."]}
codec: bf16
audio: keep
device: cpu
"""


class Page(html.parser.HTMLParser):
    """Tags that a self-contained page without scripts must not have, ids, and the text."""

    def __init__(self):
        super().__init__()
        self.bad, self.text, self.svg, self.sounds = [], "", 0, []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "link", "iframe", "object", "embed") or any(re.match("https?:|//", attrs.get(a) or "") for a in ("src", "href")):
            self.bad.append(tag)
        self.svg += tag == "svg"
        if tag == "audio":
            self.sounds.append(attrs["src"])

    def handle_data(self, data):
        self.text += data


def report(sweep, output, **environment):
    return subprocess.run([PYTHON, os.path.join(ROOT, "analysis/report.py"), sweep, "-o", output], capture_output=True, text=True,
                          env={**os.environ, "QSWEEP": QSWEEP, **environment})


def main():
    if not os.path.exists(PYTHON):
        skip("the report is made", "no Python environment beside the build: jobs/setup.sh --for report")
        done()
    box = tempfile.mkdtemp()
    try:
        job, out, page_path = box + "/job.yaml", box + "/out", box + "/report.html"
        shutil.copytree(MODEL, box + "/model")
        for name in ("codec.pth", "codec.json"):  # as many codebooks as the model has
            shutil.copy(os.path.join(ROOT, "tests/golden/codec-a", name), box + "/model")
        open(job, "w").write(JOB % (box + "/model", json.dumps(EVIL)))
        ran = subprocess.run([QSWEEP, "run", job, "--output", out, "-q"], capture_output=True, text=True)
        check("a sweep to report on runs", ran.returncode == 0, ran.stderr)
        made = report(out + "/sweep.h5", page_path)
        check("the report is made", made.returncode == 0 and os.path.exists(page_path), made.stderr)
        text = open(page_path, encoding="utf-8").read()
        page = Page()
        page.feed(text)
        check("the page is self-contained: no script, no link, nothing from a network", not page.bad, page.bad)
        check("texts of the job are escaped", "<script>" not in text and "alert(1)" in page.text)
        rows = [json.loads(line) for line in subprocess.run([QSWEEP, "show", out + "/sweep.h5", "-o", "jsonl"], capture_output=True, text=True).stdout.splitlines()]
        check("every planned cell stands in the table", all(r["id"][:8] in page.text for r in rows) and len(rows) == 4)
        first = {r["precision"]: r for r in rows if r["batch"] == 1}
        saving = 100 * (1 - first["int8"]["vram_baseline_mb"] / first["bf16"]["vram_baseline_mb"])
        check("the memory saved is computed from the file", "%.1f %%" % saving in page.text, saving)
        told = subprocess.run([QSWEEP, "compare", out + "/sweep.h5", "--axis", "precision", "--from", "bf16", "--to", "int8", "-o", "json"], capture_output=True, text=True)
        verdict = next(c["verdict"] for c in json.loads(told.stdout)["comparisons"] if c["metric"] == "latency" and c["candidate_cell"]["id"] == first["int8"]["id"])
        check("the word about speed is that of `qsweep compare`", re.search(r"Speed:\s*%s" % re.escape(verdict), page.text), verdict)
        check("plots and the quality table are there", page.svg >= 6 and "top-1 agreement" in page.text)
        sounds = [base64.b64decode(s.split(",", 1)[1]) for s in page.sounds if s.startswith("data:audio/wav;base64,")]
        kept = [open(f, "rb").read() for f in sorted(glob.glob(out + "/audio/*.wav"))]
        check("the kept sounds of both precisions and texts play in the page, side by side", len(sounds) == 4 and len(kept) == 8 and all(s in kept and s[:4] == b"RIFF" for s in sounds), (len(sounds), len(kept)))
        check("without the program the report says that nothing was compared", report(out + "/sweep.h5", box + "/r2.html", QSWEEP="/nonexistent").returncode == 0
              and "not compared" in open(box + "/r2.html", encoding="utf-8").read())
        # A sound that cannot be written (here a folder has its name) is told, and the measurement stands.
        identity = first["int8"]["id"]
        os.remove("%s/cells/%s/cell-%s.h5" % (out, identity[:2], identity))
        os.remove("%s/audio/%s-text0.wav" % (out, identity))
        os.mkdir("%s/audio/%s-text0.wav" % (out, identity))
        again = subprocess.run([QSWEEP, "run", job, "--output", out, "-q", "--resume"], capture_output=True, text=True)
        fact = subprocess.run(["h5dump", "-a", "/cells/%s/provenance/facts/audio_error" % identity, out + "/sweep.h5"], capture_output=True, text=True)
        check("a sound that cannot be kept costs no measurement and is told", again.returncode == 0 and identity + "-text0.wav" in fact.stdout, again.stderr + fact.stdout)
        open(box + "/broken.h5", "wb").write(open(out + "/sweep.h5", "rb").read()[:3000])
        broken = report(box + "/broken.h5", box + "/r3.html")
        check("a file cut short is one line, exit 1, and no page", broken.returncode == 1 and "broken.h5" in broken.stderr and "Traceback" not in broken.stderr and not os.path.exists(box + "/r3.html"), broken.stderr)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if not chromium:
            skip("Chromium shows it without console errors", "no chromium here")
            skip("nothing is wider than a phone", "no chromium here")
        else:
            # The page itself has no script; this copy measures it and writes what it found into the title.
            probe = text.replace("</body>", "<script>addEventListener('load',()=>{document.title='W'+document.documentElement.scrollWidth+'/'+innerWidth})</script></body>")
            open(box + "/probe.html", "w", encoding="utf-8").write(probe)
            shown = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--enable-logging=stderr", "--virtual-time-budget=2000", "--user-data-dir=" + box + "/profile",
                                    "--dump-dom", "file://" + box + "/probe.html"], capture_output=True, text=True, timeout=120)
            errors = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
            check("Chromium shows it without console errors", shown.returncode == 0 and not errors, errors)
            width = re.search(r"<title>W(\d+)/(\d+)", shown.stdout)
            check("nothing is wider than a phone", width and int(width.group(1)) <= int(width.group(2)), shown.stdout[:300] if not width else width.group(0))
    finally:
        shutil.rmtree(box, ignore_errors=True)
    done()


if __name__ == "__main__":
    main()
