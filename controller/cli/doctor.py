"""What `doctor` prints: the checks of this machine, and of the controller that runs on it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from controller.api.client import ApiClient
from controller.cli.output import say
from controller.config import Config, load_config, printed
from controller.monitoring.doctor import VLLM_REMEDY, examine, examine_vllm
from store.errors import SageError
from store.formatting import count
from store.http_api import EngineView, Finding, StateView


def print_findings(config: Config, *, settings: bool) -> int:
    """Print each finding as it is made, and the settings; returns the number of problems."""
    states = []
    for finding in _findings(config):
        say(f"[{finding.state:>5}] {finding.name}: {finding.text}")
        if finding.remedy:
            say(f"        -> {finding.remedy}")
        states.append(finding.state)
    _print_settings(config, everything=settings)
    wrong, notes = states.count("wrong"), states.count("note")
    what = [
        f"{count(number)} {name}{'s' * (number > 1)}"
        for number, name in ((wrong, "problem"), (notes, "note"))
        if number
    ]
    say(", ".join(what) if what else "all is well")
    return wrong


def _findings(config: Config) -> Iterator[Finding]:
    """Yield the findings; a controller that answers at the port stands in place of what may have taken it.

    vLLM is imported and tried only where no connected engine has told what it found of its own.
    """
    state = None
    for finding in examine(config, now_s=time.time()):
        if finding.name == "port" and finding.state == "note":
            state = _state(config)
        yield from [finding] if state is None or finding.name != "port" else _controller(config, state)
    told = (
        ()
        if state is None
        else tuple(_told(engine) for engine in state.engines if engine.connected and engine.contract)
    )
    yield from told or [examine_vllm()]


def _told(engine: EngineView) -> Finding:
    """What an engine said of its vLLM at its start."""
    text = f"{engine.engine_version} of {engine.engine_id}: {engine.contract}"
    if engine.contract_holds:
        return Finding(name="vLLM", state="ok", text=text)
    return Finding(name="vLLM", state="wrong", text=text, remedy=VLLM_REMEDY)


def _state(config: Config) -> StateView | None:
    """What the controller at the configured port says; None when none answers."""
    client = ApiClient(f"http://127.0.0.1:{config.http.port}", token=config.http.credential)
    try:
        return msgspec.convert(client.get("/api/state"), StateView)
    except (SageError, msgspec.ValidationError):
        return None
    finally:
        client.close()


def _controller(config: Config, state: StateView) -> Iterator[Finding]:
    """Yield what a running controller says of itself and its engines."""
    running = state.controller
    text = f"{running.version} at http://127.0.0.1:{config.http.port}, mode {running.mode}, history in {running.store_path}"
    yield Finding(name="controller", state="ok", text=text)
    for degraded in state.degraded:
        yield Finding(name="controller", state="note", text=degraded.text)
    engines = [engine for engine in state.engines if engine.connected]
    if engines:
        texts = (f"{each.engine_id} ({each.engine} {each.engine_version}, model {each.model})" for each in engines)
        yield Finding(name="engines", state="ok", text=", ".join(texts))
        return
    yield Finding(
        name="engines",
        state="note",
        text="none is connected",
        remedy="start vLLM as this user with --scheduler-cls engine_adapter.vllm_scheduler.SageScheduler; where "
        f"SAGESCHED_ENDPOINT is set for it, it must be that of the controller ({config.engine.endpoint}); its log says "
        "where it reports to",
    )


def _print_settings(config: Config, *, everything: bool) -> None:
    """Print all settings, or those that are not at their defaults."""
    defaults = () if everything else set(printed(load_config(environment={})))
    changed = [f"  {key} = {value}" for key, value in printed(config) if (key, value) not in defaults]
    if everything or changed:
        say("settings:" if everything else "settings that differ from the defaults:")
        say("\n".join(changed))
    if not everything:
        say("(doctor --settings lists all settings in force)")
