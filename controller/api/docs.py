"""A page that describes the API, without scripts and without resources of other servers."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse

_STYLE = "body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}code{background:#eee;padding:0 .2em}"


def add_docs(api: FastAPI) -> None:
    """Serve the description at ``/docs``."""

    @api.get("/", include_in_schema=False)
    def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @api.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(page(api.openapi()))


def page(openapi: dict[str, Any]) -> str:
    """An OpenAPI description as HTML, with all text escaped.

    >>> "&lt;b&gt;" in page({"info": {"title": "<b>", "version": "1"}, "paths": {}})
    True
    """
    info = openapi["info"]
    title = html.escape(f"{info['title']} {info['version']}")
    parts = "".join(part for path, methods in openapi["paths"].items() for part in _operations(path, methods))
    about = html.escape(info.get("description", ""))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'<h1>{title}</h1><p>{about}</p><p>For programs: <a href="/openapi.json">openapi.json</a></p>{parts}</html>'
    )


def _operations(path: str, methods: dict[str, Any]) -> Iterator[str]:
    for method, operation in methods.items():
        yield f"<h2><code>{html.escape(method.upper())} {html.escape(path)}</code></h2>"
        yield f"<p>{html.escape(operation.get('description', ''))}</p>"
        items = [_parameter(parameter) for parameter in operation.get("parameters", ())]
        if "requestBody" in operation:
            items.append("<li>a JSON body: see openapi.json</li>")
        if items:
            yield f"<ul>{''.join(items)}</ul>"


def _parameter(parameter: dict[str, Any]) -> str:
    schema = parameter.get("schema", {})
    bounds = ", ".join(f"{key} {value}" for key, value in schema.items() if key not in {"title", "anyOf"})
    return (
        f"<li><code>{html.escape(parameter['name'])}</code> ({html.escape(parameter['in'])}) {html.escape(bounds)}</li>"
    )
