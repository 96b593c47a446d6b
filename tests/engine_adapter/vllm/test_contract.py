"""What the plugin leans on in vLLM by name; `test_probe` has the behaviours."""

from __future__ import annotations

import inspect
import os

import pytest
import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from engine_adapter.vllm import contract
from engine_adapter.vllm_scheduler import SageScheduler

pytestmark = pytest.mark.vllm


def test_the_version_under_test_is_served() -> None:
    """The installed release, or the one whose files were put before it."""
    assert vllm.__version__.startswith(os.environ.get("SAGESCHED_VLLM_EXPECTED", "0.32"))
    assert contract.refusal(vllm.__version__) is None


def test_every_name_is_there() -> None:
    """No name, parameter or attribute is missing, and none of ours is taken."""
    assert contract.check() == []


def test_a_missing_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a name gone, a parameter renamed, an attribute dropped, one of ours taken."""
    monkeypatch.delattr("vllm.v1.core.sched.request_queue.create_request_queue")
    monkeypatch.setattr(AsyncScheduler, "schedule", lambda this: this)
    monkeypatch.setattr(AsyncScheduler, "_sage", None, raising=False)
    monkeypatch.setitem(contract.ATTRIBUTES, ("vllm.v1.request", "Request"), ("tokens_to_come",))
    assert contract.check() == [
        "vllm.v1.core.sched.request_queue has no create_request_queue",
        "vllm.v1.core.sched.async_scheduler.AsyncScheduler.schedule takes ('this',), expected ('self',) first",
        "vllm.v1.core.sched.request_queue has no function create_request_queue",
        "vllm.v1.request.Request has no tokens_to_come",
        "AsyncScheduler has a _sage of its own",
    ]


def test_only_an_older_release_may_lack_what_came_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release as old as the name's, or newer, must have it, and any must have what did the same before it."""
    monkeypatch.setitem(contract.ATTRIBUTES, ("vllm.v1.request", "Request"), ("tokens_to_come",))
    monkeypatch.setitem(contract.LATER, "tokens_to_come", ((0, 90), None))
    assert contract.check() == []
    monkeypatch.setitem(contract.LATER, "tokens_to_come", ((0, 26), None))
    assert contract.check() == ["vllm.v1.request.Request has no tokens_to_come"]
    monkeypatch.setitem(contract.LATER, "tokens_to_come", ((0, 90), "tokens_before"))
    assert contract.check() == ["vllm.v1.request.Request has no tokens_before"]


@pytest.mark.parametrize("version", ["0.99.0", "0.1.dev1+gabcdef", "dev"])
def test_a_release_is_judged_by_what_it_has_and_not_by_its_number(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """A release to come, a build from source and one without a number are served where every name is there.

    An old one that calls itself newer lacks what came since.
    """
    old = any(contract.may_lack(name, vllm.__version__) for name in contract.LATER)
    monkeypatch.setattr("vllm.__version__", version)
    assert bool(contract.check()) == (old and version == "0.99.0")


def test_a_known_bad_release_is_refused_whatever_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """All names are there, and it says why nothing else counts."""
    monkeypatch.setattr("vllm.__version__", "0.25.1")
    assert contract.check() == ["its finish_requests returns no requests: install 0.26 or later"]


def test_the_plugin_overrides_only_what_the_contract_names() -> None:
    """A method that the contract does not list cannot shadow one of vLLM's."""
    listed = {name.split(".")[1] for module, name in contract.PARAMETERS if name.startswith("AsyncScheduler.")}
    defined = {name for name, value in vars(SageScheduler).items() if inspect.isfunction(value)}
    assert defined - {"__init__"} - set(contract.OURS) == listed
