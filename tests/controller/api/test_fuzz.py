"""Every path of the API with whatever a program can think of, made from the API's own description."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SETTINGS = hypothesis.settings(
    max_examples=8,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
SLOW = {"/api/doctor"}
"""Doctor looks at the machine for seconds; its path takes no parameters."""

UNTYPED = {"/metrics"}
BODIES = {
    "/api/mode": {"mode": "shadow"},
    "/api/predict": {"model": "h800-qwen3-32b-24k", "prompt_tokens": 9, "max_tokens": 99},
    "/api/route": {"model": "m", "prompt_tokens": 9, "max_tokens": 99},
}


def test_no_request_is_answered_otherwise_than_the_description_says(start_controller: Start) -> None:
    """Valid and invalid parameters and bodies: no failure of ours, and every answer is of a described kind."""
    running = start_controller()
    engine = running.connect()
    engine.submit("r1", output_tokens=3)
    engine.step_until(lambda: len(engine.lives) == 1)
    schema = schemathesis.openapi.from_url(str(running.client.base_url.join("/openapi.json")))
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in SLOW:
            continue
        for mode in schemathesis.GenerationMode:
            tried += try_operation(operation, mode)
    assert tried > 100
    assert running.client.get("/healthz").json()["status"] == "ok"
    assert running.service.loop._trouble.errors == 0


def test_every_answer_has_a_schema_which_it_satisfies(start_controller: Start) -> None:
    """While requests wait, run and have ended: the struct of each path is described, and the real answer is of it."""
    running = start_controller()
    engine = running.connect()
    for number in range(3):
        engine.submit(f"r{number}", output_tokens=3 + 400 * (number % 2))
    engine.step_until(lambda: running.client.get("/api/state").json()["learner"]["completions"] == 2)
    engine.step_until(lambda: running.client.get("/api/requests/r1").is_success)  # Its arrival is durable.
    schema = schemathesis.openapi.from_url(str(running.client.base_url.join("/openapi.json")))
    described = {path: methods for path, methods in schema.raw_schema["paths"].items() if path not in UNTYPED}
    assert len(described) >= 14
    for path, methods in described.items():
        for method, operation in methods.items():
            content = operation["responses"]["200"]["content"]
            name = content["application/json"]["schema"]["$ref"].removeprefix("#/components/schemas/")
            assert schema.raw_schema["components"]["schemas"][name]["required"]
            given: dict[str, Any] = {"path_parameters": {"request_id": "r1"}} if "{request_id}" in path else {}
            if path in BODIES:
                given = {"body": BODIES[path], "media_type": "application/json"}
            answer = schema[path][method.upper()].Case(**given).call_and_validate(checks=CHECKS, timeout=150.0)
            assert answer.status_code == 200


def try_operation(operation: Any, mode: schemathesis.GenerationMode) -> int:
    tried = 0

    @SETTINGS
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        nonlocal tried
        tried += 1
        case.call_and_validate(checks=CHECKS, timeout=20.0)

    try:
        holds()
    except hypothesis.errors.Unsatisfiable:
        return tried  # Nothing is invalid for a path without parameters.
    return tried
