"""The frame of every HTML report, and the common style of its plots."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from store.atomic_file import write_whole

COLOURS = (
    "#6b7280", "#d97706", "#2563eb", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#b91c1c", "#1e3a8a",
    "#a16207", "#be185d", "#0f766e",
)  # fmt: skip
CDF_POINTS = 400
"""Quantiles at which the distribution of many requests is drawn."""

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #111827; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e5e7eb; }}
th:first-child, td:first-child {{ text-align: left; }}
</style>{library}</head>
<body><h1>{title}</h1><p>{about}</p>{body}</body></html>
"""


_LIBRARY = """
<script id="plotly" type="text/plain">{packed}</script>
<script>
const waiting = [];
window.Plotly = {{ newPlot: (...plot) => waiting.push(plot) }};
const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (byte) => byte.charCodeAt(0));
new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text().then((program) => {{
  const script = document.createElement("script");
  script.textContent = program;
  document.head.append(script);
  waiting.forEach((plot) => window.Plotly.newPlot(...plot));
}});
</script>"""
"""Plotly within the page, compressed: 2 MB in place of 5. Plots wait until the browser has unpacked it."""


def write_page(path: Path, *, title: str, about: str, parts: Iterable[str | go.Figure]) -> None:
    """Write a self-contained page; ``parts`` are HTML or plots, for which it includes Plotly."""
    given = list(parts)
    library = "" if all(isinstance(part, str) for part in given) else _library()
    body = "".join(part if isinstance(part, str) else _drawn(part) for part in given)
    write_whole(path, _PAGE.format(title=escape(title), about=escape(about), body=body, library=library))


def _drawn(figure: go.Figure) -> str:
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, default_height="420px")
    return html


@cache
def _library() -> str:
    return _LIBRARY.format(packed=b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode())


def heading(text: str) -> str:
    """A section's heading as HTML."""
    return f"<h2>{escape(text)}</h2>"


def plot(title: str, x_title: str, y_title: str) -> go.Figure:
    """An empty plot."""
    axes = {"xaxis": {"title": x_title}, "yaxis": {"title": y_title}}
    return go.Figure(layout={"title": title, "template": "plotly_white", **axes})


def colour(number: int) -> str:
    """The colour of a page's policy, learner or series by its number."""
    return COLOURS[number % len(COLOURS)]
