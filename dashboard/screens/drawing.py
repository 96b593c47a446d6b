"""Charts in the browser: each stays the same element while its data change, so that a zoom and a hidden curve last.

Streamlit's own chart is a new element for each figure, and forgets what the reader did to the one before it.
"""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
import streamlit as st
from plotly.io.json import to_json_plotly

from dashboard.charts import library

_SCRIPT = Path(__file__).with_name("drawing.js").read_text("utf-8")


def draw(figure: go.Figure, key: str, label: str) -> None:
    """Show a figure in the colours of the theme.

    Args:
        figure: what to show; its own template is left out.
        key: which chart it is, from one drawing to the next.
        label: what it is, to those who cannot see it.
    """
    spec = figure.to_dict()
    spec["layout"].pop("template", None)
    _mount({"library": library.PATH, "label": label, "figure": to_json_plotly(spec)}, key)


def prepare() -> None:
    """Have the browser fetch what draws, which takes it a second, while the page's data are still being read."""
    _mount({"library": library.PATH}, "drawing")


def _mount(data: dict[str, str], key: str) -> None:
    component = st.components.v2.component("sagesched_chart", js=_SCRIPT, isolate_styles=False)
    component(data=data, key=key)
