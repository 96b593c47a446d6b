"""Plotly's program for the browser, out of the Python package, so that figures and program are of one release."""

from __future__ import annotations

import gzip
from functools import cache

import plotly
from plotly.offline import get_plotlyjs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PATH = f"/plotly-{plotly.__version__}.js"
"""Where the dashboard serves it; a browser keeps what lies there for good."""


def route() -> Route:
    """The route that serves it."""
    return Route(PATH, _answer)


def _answer(_: Request) -> Response:
    headers = {"Content-Encoding": "gzip", "Cache-Control": "private, max-age=31536000, immutable"}
    return Response(_compressed(), media_type="text/javascript", headers=headers)


@cache
def _compressed() -> bytes:
    return gzip.compress(get_plotlyjs().encode(), 6)
