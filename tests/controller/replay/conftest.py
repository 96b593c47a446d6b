from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from controller.policy.service_levels import ServiceClass, ServiceLevels
from store.records import Targets


@pytest.fixture(scope="package")
def promised(tmp_path_factory: pytest.TempPathFactory, serve_small: Callable[..., Any]) -> Any:
    """A history of first come, first served, with one request in ten, those of priority -1, in a class."""
    chat = ServiceClass(targets=Targets(ttft_s=1.5, tpot_s=0.05, e2e_s=60.0), priorities=frozenset({-1}))
    levels = ServiceLevels(classes={"chat": chat})
    return serve_small(tmp_path_factory.mktemp("slo") / "h", mode="shadow", start_s=1.7e9, service=levels)
