"""Answers of the API as msgspec structs: encoded with msgspec, and described in OpenAPI by their JSON schemas."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import msgspec
from fastapi import FastAPI, Response
from fastapi.routing import APIRoute

_SCHEMAS = "#/components/schemas/{name}"


class StructRoute(APIRoute):
    """A route whose endpoint may return a msgspec struct, which pydantic does not know."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        answer = inspect.signature(endpoint, eval_str=True).return_annotation
        self.struct: type[msgspec.Struct] | None = None
        if isinstance(answer, type) and issubclass(answer, msgspec.Struct):
            self.struct = answer
            schema = {"$ref": _SCHEMAS.format(name=answer.__name__)}
            described = {"description": inspect.getdoc(answer), "content": {"application/json": {"schema": schema}}}
            options |= {
                "response_model": None,
                "response_class": Response,
                "responses": {**(options.get("responses") or {}), 200: described},
            }
            endpoint = _encoded(endpoint)
        super().__init__(path, endpoint, **options)


class StructApi(FastAPI):
    """An application whose OpenAPI description holds the schemas of the structs that it answers with."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.router.route_class = StructRoute

    def openapi(self) -> dict[str, Any]:
        """The description, with a schema for every answer."""
        if self.openapi_schema is None:
            structs = [route.struct for route in self.routes if isinstance(route, StructRoute) and route.struct]
            _, schemas = msgspec.json.schema_components(structs, ref_template=_SCHEMAS)
            super().openapi()["components"]["schemas"].update(schemas)
        assert self.openapi_schema is not None, "FastAPI keeps the description that it made"
        return self.openapi_schema


def _encoded(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint with its answer encoded; a coroutine stays one, so that it runs outside the pool of threads."""

    @wraps(endpoint)
    def answer(*given: Any, **named: Any) -> Response:
        return _response(endpoint(*given, **named))

    @wraps(endpoint)
    async def awaited(*given: Any, **named: Any) -> Response:
        return _response(await endpoint(*given, **named))

    return awaited if inspect.iscoroutinefunction(endpoint) else answer


def _response(struct: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(struct), media_type="application/json")
