"""Charts in the browser: each stays the same element while its data change, so that a zoom and a hidden curve last.

Streamlit's own chart is a new element for each figure, and forgets what the reader did to the one before it.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TypeAlias

import plotly.graph_objects as go
import streamlit as st
from plotly.io.json import to_json_plotly

from dashboard.charts import library

_SCRIPT = Path(__file__).with_name("drawing.js").read_text("utf-8")

Span: TypeAlias = tuple[datetime, datetime]
"""Begin and end on the wall clock of the chart."""


def draw(figure: go.Figure, key: str, label: str) -> Span | None:
    """Show a figure in the colours of the theme; give the span of time that the reader just asked for, if any.

    Args:
        figure: what to show; its own template is left out.
        key: which chart it is, from one drawing to the next.
        label: what it is, to those who cannot see it.
    """
    spec = figure.to_dict()
    spec["layout"].pop("template", None)
    return _span(_mount({"library": library.PATH, "label": label, "figure": to_json_plotly(spec)}, key))


def prepare() -> None:
    """Have the browser fetch what draws, which takes it a second, while the page's data are still being read."""
    _mount({"library": library.PATH}, "drawing")


def _mount(data: dict[str, str], key: str) -> object:
    """What the browser said of the span: nothing, but in the run that a click on the button caused."""
    component = st.components.v2.component("sagesched_chart", js=_SCRIPT, isolate_styles=False)
    return component(data=data, key=key, on_span_change=lambda: None).get("span")


def _span(said: object) -> Span | None:
    """A span as the browser writes it.

    >>> _span(["2026-01-01 00:00", "2026-01-01 00:10:30.25"])
    (datetime.datetime(2026, 1, 1, 0, 0), datetime.datetime(2026, 1, 1, 0, 10, 30, 250000))
    >>> _span(["noon", 5]), _span(None)
    (None, None)
    """
    if not isinstance(said, list) or len(said) != 2:
        return None
    try:
        begin, end = (datetime.fromisoformat(str(at)).replace(tzinfo=None) for at in said)
    except ValueError:
        return None
    return min(begin, end), max(begin, end)
