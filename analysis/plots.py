"""Small inline SVG plots for the report: themed by the page's CSS variables, readable without scripts or a network.

Own code instead of a plotting library because the figures must follow the page's light and dark theme, scale down to
a phone, print, and carry a text alternative; a static image of matplotlib does none of that and its packages weigh
364 MB. Series colours are var(--series-1) … var(--series-6); every figure has a <title> and a <desc>.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import Iterable, Sequence

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most about `count` round numbers covering [low, high] (Heckbert, Graphics Gems, 1990)."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(count - 1, 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if raw <= m * magnitude * 1.0000001)
    first = math.floor(low / step) * step
    ticks = []
    value = first
    while value < high + step * 0.999:
        ticks.append(round(value, 12))
        value += step
    return ticks


def number(value: float, digits_wanted: int = 3) -> str:
    """Short text of a number: so many significant digits, no exponent below 1e6."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        return f"{value:.2e}"
    digits = max(0, digits_wanted - 1 - math.floor(math.log10(size)))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass
class Series:
    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # band around y
    high: Sequence[float] | None = None
    step: bool = False
    dots: bool = False


@dataclass
class Figure:
    title: str
    description: str
    x_label: str
    y_label: str
    zero: bool = True  # the y axis starts at zero
    marks: list[tuple[float, str]] = field(default_factory=list)  # vertical lines with a label

    def _frame(self, x0, x1, y0, y1, body: str, x_ticks=None) -> str:
        sx = lambda v: LEFT + (v - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        sy = lambda v: HEIGHT - BOTTOM - (v - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        parts = [
            caption(self.title),
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="plot">',
            f"<title>{html.escape(self.title)}</title><desc>{html.escape(self.description)}</desc>",
        ]
        for t in nice_ticks(y0, y1):
            if y0 - 1e-9 <= t <= y1 * (1 + 1e-9) + 1e-12:
                parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{sy(t):.1f}" y2="{sy(t):.1f}"/>')
                parts.append(f'<text class="tick" x="{LEFT - 8}" y="{sy(t) + 4:.1f}" text-anchor="end">{number(t)}</text>')
        for t, text in x_ticks if x_ticks is not None else [(t, number(t)) for t in nice_ticks(x0, x1, 7)]:
            if x0 - 1e-9 <= t <= x1 + 1e-9:
                parts.append(f'<text class="tick" x="{sx(t):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{html.escape(text)}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(self.x_label)}</text>')
        parts.append(f'<text class="label" transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{html.escape(self.y_label)}</text>')
        last = -1e9
        for at, text in self.marks:
            if x0 <= at <= x1:
                parts.append(f'<line class="mark" x1="{sx(at):.1f}" x2="{sx(at):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
                if sx(at) - last > 52:
                    parts.append(f'<text class="tick" x="{sx(at) + 3:.1f}" y="{TOP + 10}">{html.escape(text)}</text>')
                    last = sx(at)
        parts.append(body)
        parts.append("</svg>")
        return "".join(parts)

    def lines(self, series: Iterable[Series]) -> str:
        """Lines over a numeric x axis, with optional bands; missing values (NaN) break the line."""
        series = [s for s in series if len(s.x)]
        if not series:
            return nothing(self.title)
        finite = [v for s in series for v in [*s.y, *(s.high if s.high is not None else []), *(s.low if s.low is not None else [])] if math.isfinite(v)]
        xs = [v for s in series for v in s.x if math.isfinite(v)]
        if not finite or not xs:
            return nothing(self.title)
        x0, x1 = min(xs), max(xs)
        x1 = x1 if x1 > x0 else x0 + 1
        y0, y1 = (0 if self.zero and min(finite) >= 0 else min(finite)), max(finite)
        ticks = nice_ticks(y0, y1)
        y0, y1 = min(y0, ticks[0]), max(y1, ticks[-1])
        sx = lambda v: LEFT + (v - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        sy = lambda v: HEIGHT - BOTTOM - (v - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        body = []
        for i, s in enumerate(series):
            colour = f"var(--series-{i % 6 + 1})"
            if s.low is not None and s.high is not None:
                forward = " ".join(f"{sx(a):.1f},{sy(b):.1f}" for a, b in zip(s.x, s.high) if math.isfinite(b))
                back = " ".join(f"{sx(a):.1f},{sy(b):.1f}" for a, b in reversed(list(zip(s.x, s.low))) if math.isfinite(b))
                body.append(f'<polygon points="{forward} {back}" fill="{colour}" opacity="0.18"/>')
            path, pen = [], False
            previous = None
            for a, b in zip(s.x, s.y):
                if not math.isfinite(b):
                    pen = False
                    continue
                if s.step and pen:
                    path.append(f"L{sx(a):.1f} {sy(previous):.1f}")
                path.append(f"{'L' if pen else 'M'}{sx(a):.1f} {sy(b):.1f}")
                pen, previous = True, b
            body.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>')
            if s.dots:
                body.extend(f'<circle cx="{sx(a):.1f}" cy="{sy(b):.1f}" r="3.5" fill="{colour}"><title>{html.escape(s.label)}: {number(b)}</title></circle>'
                            for a, b in zip(s.x, s.y) if math.isfinite(b))
        return self._frame(x0, x1, y0, y1, "".join(body)) + legend([s.label for s in series])

    def boxes(self, groups: Sequence[tuple[str, Sequence[float]]]) -> str:
        """Box and every point of each group: median, quartiles, whiskers to the extremes."""
        groups = [(name, sorted(v for v in values if math.isfinite(v))) for name, values in groups]
        groups = [(name, values) for name, values in groups if values]
        if not groups:
            return nothing(self.title)
        low, high = min(v[0] for _, v in groups), max(v[-1] for _, v in groups)
        y0 = 0 if self.zero and low >= 0 else low
        ticks = nice_ticks(y0, high)
        y0, y1 = min(y0, ticks[0]), max(high, ticks[-1])
        n = len(groups)
        sx = lambda i: LEFT + (i + 0.5) / n * (WIDTH - LEFT - RIGHT)
        sy = lambda v: HEIGHT - BOTTOM - (v - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        half = min(36, (WIDTH - LEFT - RIGHT) / n / 3)
        body = []
        for i, (name, v) in enumerate(groups):
            colour = f"var(--series-{i % 6 + 1})"
            q = [quantile(v, p) for p in (0.25, 0.5, 0.75)]
            x = sx(i)
            body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{sy(v[0]):.1f}" y2="{sy(v[-1]):.1f}" stroke="{colour}"/>')
            body.append(f'<rect x="{x - half:.1f}" width="{2 * half:.1f}" y="{sy(q[2]):.1f}" height="{max(sy(q[0]) - sy(q[2]), 1):.1f}" fill="{colour}" opacity="0.25" stroke="{colour}"/>')
            body.append(f'<line x1="{x - half:.1f}" x2="{x + half:.1f}" y1="{sy(q[1]):.1f}" y2="{sy(q[1]):.1f}" stroke="{colour}" stroke-width="2.5"/>')
            for k, value in enumerate(v):
                jitter = ((k * 0.618034) % 1 - 0.5) * half * 1.2
                body.append(f'<circle cx="{x + jitter:.1f}" cy="{sy(value):.1f}" r="2.2" fill="{colour}" opacity="0.7"/>')
        x_ticks = [((i + 0.5) / n, name if len(name) < 26 else name[:24] + "…") for i, (name, _) in enumerate(groups)]
        return self._frame(0, 1, y0, y1, "".join(body), x_ticks)

    def stacked_bars(self, rows: Sequence[tuple[str, dict[str, float]]]) -> str:
        """One horizontal bar a row, split into named parts."""
        parts = []
        for _, values in rows:
            parts.extend(k for k, v in values.items() if v > 0 and k not in parts)
        total = max((sum(v for v in values.values() if v > 0) for _, values in rows), default=0)
        if not parts or total <= 0:
            return nothing(self.title)
        height = TOP + 34 * len(rows) + BOTTOM
        ticks = nice_ticks(0, total)
        span = max(total, ticks[-1])
        left = 150
        sx = lambda v: left + v / span * (WIDTH - left - 70)
        out = [caption(self.title), f'<svg viewBox="0 0 {WIDTH} {height}" role="img" class="plot">',
               f"<title>{html.escape(self.title)}</title><desc>{html.escape(self.description)}</desc>"]
        for t in ticks:
            out.append(f'<line class="grid" x1="{sx(t):.1f}" x2="{sx(t):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
            out.append(f'<text class="tick" x="{sx(t):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{number(t)}</text>')
        for i, (name, values) in enumerate(rows):
            y, at = TOP + 34 * i + 5, 0.0
            out.append(f'<text class="tick" x="{left - 8}" y="{y + 16}" text-anchor="end">{html.escape(name[:22])}</text>')
            for k, part in enumerate(parts):
                v = values.get(part, 0)
                if v > 0:
                    out.append(f'<rect x="{sx(at):.1f}" y="{y}" width="{sx(at + v) - sx(at):.1f}" height="24" fill="var(--series-{k % 6 + 1})"><title>{html.escape(part)}: {number(v)}</title></rect>')
                    at += v
            out.append(f'<text class="tick" x="{sx(at) + 6:.1f}" y="{y + 16}">{number(at)}</text>')
        out.append(f'<text class="label" x="{(left + WIDTH) / 2}" y="{height - 6}" text-anchor="middle">{html.escape(self.x_label)}</text></svg>')
        return "".join(out) + legend(parts)


def quantile(ordered: Sequence[float], p: float) -> float:
    """Linear interpolation between order statistics (Hyndman and Fan type 7)."""
    at = (len(ordered) - 1) * p
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def caption(title: str) -> str:
    return f"<figcaption>{html.escape(title)}</figcaption>"


def legend(labels: Sequence[str]) -> str:
    items = "".join(f'<li><span style="background:var(--series-{i % 6 + 1})"></span>{html.escape(label)}</li>' for i, label in enumerate(labels))
    return f'<ul class="legend">{items}</ul>' if len(labels) > 0 else ""


def nothing(title: str) -> str:
    return f'<p class="empty">{html.escape(title)}: nothing was recorded.</p>'
