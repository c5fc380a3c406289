"""comparison_report.html from any sweep.h5: one self-contained file, no network, no scripts.

    python analysis/report.py sweep.h5 [-o comparison_report.html] [--a bf16 --b int8]

Every statement is computed from the file; the words faster, slower, same and unclear and their intervals are those of
`qsweep compare`, never a fixed text.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent))
from plots import Figure, Series, number  # noqa: E402
from sweep_reader import Cell, Sweep  # noqa: E402

FRAME_RATE = 44100 / 2048  # frames per second of audio (the codec's hop is 2048 samples at 44.1 kHz)
CARDS_GB = [("RTX 4060", 8), ("RTX 3060", 12), ("RTX 4070 Ti", 12), ("RTX 4080", 16), ("RTX 3090 / 4090", 24), ("L4", 24), ("A100 40 GB", 40), ("H100 80 GB", 80), ("H200", 141)]
AXES = ["precision", "batch", "context", "kv", "head", "engine", "codec", "sampling", "device", "max_seq_len"]
SAME_MARGIN = 0.01  # differences below 1 % are not coloured


def verdicts(path: Path, a: str, b: str) -> dict:
    """What `qsweep compare` says of two precisions of one file, by (candidate cell, metric).

    The statistics live in the program (src/bench/verdict.h), not here: report and command line cannot disagree. An
    empty mapping when the program is not beside this file; the report then says that nothing was compared."""
    program = os.environ.get("QSWEEP") or str(Path(__file__).resolve().parent.parent / "build" / "qsweep")
    command = [program, "compare", str(path), "--axis", "precision", "--from", a, "--to", b, "-o", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        return {(c["candidate_cell"]["id"], c["metric"]): c for c in json.loads(done.stdout)["comparisons"]}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        print(f"report: no verdicts: {' '.join(command)}: {error}", file=sys.stderr)
        return {}


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:+.{digits}f} %"


def pick(summary: pd.DataFrame, precision: str) -> pd.Series | None:
    """The cell a precision is represented by: status ok, smallest batch, then smallest context."""
    rows = summary[(summary["precision"] == precision) & (summary["status"] == "ok")]
    return None if rows.empty else rows.sort_values(["batch", "context"], kind="stable").iloc[0]


def cell_of(sweep: Sweep, identity: str) -> Cell | None:
    return sweep.cell(identity) if "cells" in sweep.file and identity in sweep.file["cells"] else None


def reference_rows(a: pd.Series, b: pd.Series) -> list[dict]:
    """The reference benchmark's rows (tools/runpod/run_comparison.py §1.5), differences computed."""

    def row(name, key, unit, scale=1.0, better=None):
        x, y = float(a.get(key, math.nan)) * scale, float(b.get(key, math.nan)) * scale
        change = (y - x) / x if x and math.isfinite(x) and math.isfinite(y) else None
        tone = ""
        if better and change is not None and abs(change) > SAME_MARGIN:
            tone = "good" if (change < 0) == (better == "low") else "bad"
        return {"name": name, "unit": unit, "a": number(x, 4), "b": number(y, 4), "difference": percent(change), "tone": tone}

    def derived(name, f, unit, better=None):
        x, y = f(a), f(b)
        change = (y - x) / x if x and math.isfinite(x) and math.isfinite(y) else None
        tone = "" if change is None or not better or abs(change) <= SAME_MARGIN else ("good" if (change < 0) == (better == "low") else "bad")
        return {"name": name, "unit": unit, "a": number(x, 4), "b": number(y, 4), "difference": percent(change), "tone": tone}

    hour = lambda s: 3600.0 / float(s["rtf"]) / 60.0 if s.get("rtf") and math.isfinite(float(s["rtf"])) and float(s["rtf"]) > 0 else math.nan
    return [
        row("VRAM baseline", "vram_baseline_mb", "MB", better="low"),
        row("VRAM peak", "vram_peak_mb", "MB", better="low"),
        row("Frames per second (counted)", "frames_per_s", "frames/s", better="high"),
        row("Tokens per second (reference's estimate)", "tokens_per_s_reference", "1/s", better="high"),
        row("Real-time factor", "rtf", "", better="low"),
        row("Throughput", "throughput_x_realtime", "× real time", better="high"),
        row("Mean latency", "latency_mean_s", "s", better="low"),
        row("P95 latency", "latency_p95_s", "s", better="low"),
        derived("Audio per hour", hour, "minutes", better="high"),
        row("Warm-up time", "warmup_s", "s"),
        row("Samples tested", "n_samples", ""),
    ]


def step_figure(cells: list[tuple[str, Cell]]) -> str:
    series = []
    for name, cell in cells:
        steps = cell.steps
        if steps.empty:
            continue
        width = max(1, math.ceil((steps["step"].max() + 1) / 240))
        groups = steps.groupby(steps["step"] // width)["step_ms"]
        middle = groups.median()
        series.append(Series(name, (middle.index * width).tolist(), middle.tolist(), groups.quantile(0.05).tolist(), groups.quantile(0.95).tolist()))
    return Figure("Time of a decode step", "Median time of each decode step over the samples, with the 5 to 95 percent band.", "frame", "ms per step").lines(series)


def latency_figure(cells: list[tuple[str, Cell]]) -> str:
    groups = []
    for name, cell in cells:
        samples = cell.samples
        if samples.empty:
            continue
        for text_index in sorted(samples["text"].unique()):
            groups.append((f"{name} · text {int(text_index) + 1}", (samples.loc[samples["text"] == text_index, "latency_ms"] / 1e3).tolist()))
    groups.sort(key=lambda g: (g[0].split("text")[-1], g[0]))
    return Figure("Latency of every sample", "Box of the request latencies of each text and precision, with every sample as a dot.", "precision and text", "latency in s").boxes(groups)


def speed_figure(cells: list[tuple[str, Cell]]) -> str:
    groups = []
    for name, cell in cells:
        samples = cell.samples
        if samples.empty or "frames" not in samples:
            continue
        rate = samples["frames"] / (samples["latency_ms"] / 1e3)
        groups.append((name, rate.tolist()))
    return Figure("Frames per second of every sample", "Box of counted frames per second of request latency, with every sample as a dot.", "precision", "frames/s").boxes(groups)


def trace_figure(name: str, cell: Cell) -> str:
    trace = cell.trace
    if trace.empty:
        return Figure(f"Memory trace, {name}", "", "", "").lines([])
    seconds = (trace["t_ns"] - trace["t_ns"].iloc[0]) / 1e9
    labels = {"device_used_bytes": "device (NVML)", "process_used_bytes": "process", "pss_bytes": "process, proportional (PSS)", "arena_bytes": "our allocator"}
    series = []
    for column, label in labels.items():
        if column in trace and np.isfinite(trace[column].astype(float)).any():
            known = trace[column].astype(float).notna()  # the proportional set is read less often than the rest
            every = max(1, int(known.sum()) // 600)
            series.append(Series(label, seconds[known][::every].tolist(), (trace[column].astype(float)[known] / 1e6)[::every].tolist(), step=True))
    marks, phases = [], trace["phase"].tolist() if "phase" in trace else []
    for i, phase in enumerate(phases):
        if i == 0 or phase != phases[i - 1]:
            marks.append((float(seconds.iloc[i]), str(phase_name(cell, phase))))
    return Figure(f"Memory trace, {name}", "Memory in use over the worker's life, with the phases as vertical lines.", "seconds since the worker started", "MB", marks=marks).lines(series)


def phase_name(cell: Cell, value) -> str:
    names = ["context", "load", "ready", "warm-up", "measure", "done"]
    return names[int(value)] if isinstance(value, (int, float, np.number)) and 0 <= int(value) < len(names) else str(value)


def memory_figure(cells: list[tuple[str, Cell]]) -> str:
    rows = []
    for name, cell in cells:
        frame = cell.memory
        column = next((c for c in ("peak_bytes", "ready_bytes") if c in frame), None)
        label = next((c for c in ("class", "name") if c in frame), None)
        if column and label:
            rows.append((name, {str(k): float(v) / 1e6 for k, v in zip(frame[label], frame[column])}))
    return Figure("Memory by class at its peak", "Bytes of our own allocator by class.", "MB", "").stacked_bars(rows)


def quality_tables(cells: list[tuple[str, Cell]]) -> list[dict]:
    """Teacher-forced quality of each cell that measured it, a row a codebook."""
    tables = []
    for name, cell in cells:
        frame = cell.quality
        if frame.empty or "kl_mean" not in frame:
            continue
        columns = [("kl_mean", "KL mean, nat"), ("kl_p99", "KL p99"), ("top1", "top-1 agreement"), ("rms_dp", "RMS Δp"), ("nll", "NLL"), ("nll_ref", "NLL of the reference")]
        columns = [(key, label) for key, label in columns if key in frame]
        rows = [{"head": "semantic" if int(r["codebook"]) == 0 else f"codebook {int(r['codebook'])}", "values": [number(float(r[key])) for key, _ in columns]} for _, r in frame.iterrows()]
        tables.append({"name": name, "labels": [label for _, label in columns], "rows": rows})
    return tables


AUDIO_EMBED_BYTES = 24 << 20  # beyond this the sounds stay files beside the report, linked by name


def listening(path: Path, output: Path, cells: list[tuple[str, Cell]]) -> list[dict]:
    """The first sound of every text, the precisions side by side; kept by `audio: keep` as audio/<cell id>-textN.wav."""
    folder = path.parent / "audio"
    texts = [t for _, c in cells[:1] for t in json.loads(c.config.get("json", "{}")).get("workload", {}).get("texts", [])]
    files = [[folder / f"{cell.id}-text{i}.wav" for _, cell in cells] for i in range(len(texts))]
    embed = sum(f.stat().st_size for row in files for f in row if f.exists()) <= AUDIO_EMBED_BYTES
    rows = []
    for i, row in enumerate(files):
        sounds = [{"name": name, "source": ("data:audio/wav;base64," + base64.b64encode(f.read_bytes()).decode()) if embed else os.path.relpath(f, output.parent)}
                  for (name, _), f in zip(cells, row) if f.exists()]
        if sounds:
            rows.append({"text": str(texts[i]), "sounds": sounds})
    return rows


def context_figure(summary: pd.DataFrame) -> str:
    rows = summary[(summary["status"] == "ok")]
    series = []
    for (precision, batch), group in rows.groupby(["precision", "batch"], sort=False):
        group = group.sort_values("context")
        if group["context"].nunique() > 1:
            series.append(Series(f"{precision}, batch {batch}", group["context"].tolist(), group["frames_per_s"].tolist(), dots=True))
    return Figure("Speed over context", "Frames per second against the frames of reference voice in the prompt.", "context (frames of reference voice)", "frames/s").lines(series) if series else ""


def statements(a: pd.Series, b: pd.Series, speed, mem_change: float | None) -> list[str]:
    """What the data say, as sentences. Each follows from numbers in the file."""
    said = []
    if mem_change is not None:
        word = "less" if mem_change < 0 else "more"
        said.append(f"{b['precision'].upper()} takes {abs(100 * mem_change):.1f} % {word} memory at rest than {a['precision'].upper()}: {number(a['vram_baseline_mb'], 4)} MB → {number(b['vram_baseline_mb'], 4)} MB.")
    if speed is None:
        said.append("The speeds were not compared: too few samples, or the program is not beside the report.")
    else:
        interval = f"latency {percent(speed['change'])}, 95 % interval {percent(speed['low'])} … {percent(speed['high'])}, {speed['n']} pairs from {speed['processes']} processes"
        said.append({
            "faster": f"{b['precision'].upper()} is faster: {interval}.",
            "slower": f"{b['precision'].upper()} is slower: {interval}.",
            "same": f"The speeds are the same within the margin: {interval}.",
        }.get(speed["verdict"], f"The data cannot tell which is faster ({speed['verdict']}): {interval}. More processes would."))
    for row in (a, b):
        rtf = float(row["rtf"])
        if math.isfinite(rtf) and rtf > 0:
            said.append(f"{row['precision'].upper()} decodes {'faster' if rtf < 1 else 'slower'} than real time here: {1 / rtf:.2f} × real time on {row['device_name'] or row['device']}.")
    return said


def fits(rows: list[pd.Series]) -> list[dict]:
    """Which cards the measured peak fits, leaving 8 % (at least 600 MB) for driver and context."""
    table = []
    for name, gigabytes in CARDS_GB:
        usable = gigabytes * 1e3 - max(600.0, 0.08 * gigabytes * 1e3)
        table.append({"card": f"{name}, {gigabytes} GB", "cells": ["yes" if float(r["vram_peak_mb"]) <= usable else "no" for r in rows]})
    return table


def build(path: Path, output: Path, a_name: str, b_name: str) -> None:
    with Sweep(path) as sweep:
        summary = sweep.summary
        shown = [p for p in [a_name, b_name] if p in set(summary["precision"])] + [p for p in dict.fromkeys(summary["precision"]) if p not in (a_name, b_name)]
        chosen = [(p, pick(summary, p)) for p in shown]
        chosen = [(p, row, cell_of(sweep, row["id"])) for p, row in chosen if row is not None]
        cells = [(p.upper(), cell) for p, _, cell in chosen if cell is not None]
        pair = {p: (row, cell) for p, row, cell in chosen}
        comparison = None
        if a_name in pair and b_name in pair:
            (a, cell_a), (b, cell_b) = pair[a_name], pair[b_name]
            speed = verdicts(path, a_name, b_name).get((b["id"], "latency"))
            base_a, base_b = float(a["vram_baseline_mb"]), float(b["vram_baseline_mb"])
            change = (base_b - base_a) / base_a if base_a > 0 else None
            comparison = {"a": a_name.upper(), "b": b_name.upper(), "rows": reference_rows(a, b), "statements": statements(a, b, speed, change),
                          "saving": None if change is None else -100 * change, "from": number(base_a), "to": number(base_b), "speed": speed["verdict"] if speed else "not compared",
                          "a_id": a["id"], "b_id": b["id"]}
        axes = [x for x in AXES if x in summary and (summary[x].nunique() > 1 or x == "precision")]
        figures = [speed_figure(cells), latency_figure(cells), step_figure(cells), memory_figure(cells)] + [trace_figure(n, c) for n, c in cells] + [context_figure(summary)]
        table = [{"axes": [str(r[x]) for x in axes], "status": r["status"], "samples": int(r["n_samples"]), "fps": number(float(r["frames_per_s"])), "rtf": number(float(r["rtf"])),
                  "latency": number(float(r["latency_mean_s"])), "base": number(float(r["vram_baseline_mb"])), "peak": number(float(r["vram_peak_mb"])), "id": r["id"], "notes": r.get("notes", "")}
                 for _, r in summary.iterrows()]
        failures = [{"label": r.get("label", r["id"]), "status": r["status"], "reason": (cell_of(sweep, r["id"]).reason if cell_of(sweep, r["id"]) else "") or r.get("notes", "")}
                    for _, r in summary[summary["status"] != "ok"].iterrows()]
        provenance = sorted({(k, str(v)) for _, c in cells for k, v in c.provenance.items() if not isinstance(v, (list, dict))})
        configuration = cells[0][1].config if cells else {}
        page = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent / "templates"), autoescape=True, undefined=jinja2.StrictUndefined).get_template("report.html").render(
            comparison=comparison, axes=axes, table=table, failures=failures, figures=[f for f in figures if f], provenance=provenance,
            configuration=configuration_rows(configuration), source=path.name, attrs=sweep.attrs, job=sweep.job, counts=summary["status"].value_counts().to_dict(),
            fits=fits([row for _, row, _ in chosen]), fit_names=[p.upper() for p, _, _ in chosen], synthetic=is_synthetic(configuration), quality=quality_tables(cells), listening=listening(path, output, cells))
    temporary = output.with_name(output.name + f".tmp{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, output)


def is_synthetic(config: dict) -> bool:
    """`qsweep synth` leaves synth.json beside the weights it made; a copy quantized from them carries it along."""
    return bool(config.get("model")) and (Path(str(config["model"])) / "synth.json").exists()


def configuration_rows(config: dict) -> list[tuple[str, str]]:
    rows = []

    def walk(prefix, value):
        if isinstance(value, dict):
            for k, v in value.items():
                walk(f"{prefix}.{k}" if prefix else str(k), v)
        elif isinstance(value, list):
            for i, v in enumerate(value):
                walk(f"{prefix}[{i + 1}]", v)
        else:
            rows.append((prefix, str(value)))

    walk("", {k: v for k, v in config.items() if k not in ("units", "long_name")})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("comparison_report.html"))
    parser.add_argument("--a", default="bf16", help="precision to compare from (default bf16)")
    parser.add_argument("--b", default="int8", help="precision to compare with it (default int8)")
    options = parser.parse_args()
    try:
        build(options.sweep, options.output, options.a, options.b)
    except (OSError, ValueError, KeyError) as error:
        print(f"report: {options.sweep}: {error}", file=sys.stderr)
        return 1
    print(f"report: {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
