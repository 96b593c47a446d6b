"""Attacks the whole product for some minutes and audits it: ``make attack``, ``make attack SEED=7 SECONDS=120``.

vLLM with the plugin serves on the virtual GPU, under a controller with history, token, dashboard and telemetry.
Clients, harmless and hostile, never pause; one fault after another is injected and healed, in an order that follows
from the seed. What stock vLLM answers was asked before. Prints what was injected, what was checked, and each violation
with its moment; exit code 1 where there is one.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos import audit, faults, floods
from chaos.book import Page, answered_by_stock, write_book
from chaos.clients import ClientPool, Line
from chaos.site import PLACES, SPEED, Site, server_arguments, wait_for

from engine_adapter.serving.processes import Children
from engine_adapter.serving.vllm_server import VllmServer
from engine_adapter.virtual_time.profiles import PROFILES

CLIENTS = 24
PAGES = 200
FAULTS: tuple[type[faults.Fault], ...] = (
    faults.Killed,
    faults.KilledAndFlooded,
    faults.Hung,
    faults.EngineHung,
    faults.Restarted,
    faults.FullDisk,
    faults.DeletedHistory,
    faults.DeletedSocket,
    faults.SecondController,
    faults.SecondOnHistory,
    faults.ClockStep,
    faults.EngineClockStep,
    faults.ControllerClockStep,
    faults.ModeSwitched,
    faults.HugeIds,
    faults.HugeTenants,
    floods.ApiFlood,
    floods.DashboardFlood,
    floods.EndpointFlood,
    floods.SilentStrangers,
)
SHORT: tuple[type[faults.Fault], ...] = (
    faults.KilledAndFlooded,
    faults.Hung,
    faults.FullDisk,
    faults.DeletedHistory,
    faults.ClockStep,
    faults.HugeIds,
    floods.ApiFlood,
    floods.EndpointFlood,
)
"""What the short form injects, each once."""
RECORDED_S = 60.0
"""Time within which all that was answered is in the history."""
GOES_ON_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    seed: int
    seconds: float
    kinds: Sequence[type[faults.Fault]] = FAULTS
    """What is injected, again and again until the time is over, each at least once."""
    tcp: bool = False
    pages: int = PAGES
    say: Callable[[str], None] = str
    """Hears what is being done."""


@dataclass(slots=True)
class Report:
    """What a run came to."""

    plan: Plan
    findings: audit.Findings
    injected: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)

    def text(self) -> str:
        """Readable, some dozens of lines."""
        outcomes = Counter(
            line.outcome if line.outcome != "answered" else str(line.answer.status) for line in self.lines
        )
        plan = self.plan
        parts = [
            f"attack with seed {plan.seed}, {'tcp' if plan.tcp else 'ipc'}: {len(self.lines)} requests, "
            + ", ".join(f"{count} {name}" for name, count in outcomes.most_common()),
            "injected: " + ", ".join(f"{name} {count}" for name, count in sorted(self.injected.items())),
            *([f"left out: {', '.join(self.left_out)}"] if self.left_out else []),
            "checked: " + ", ".join(f"{name} {count}" for name, count in sorted(self.findings.checks.items())),
            "memory, MB: "
            + ", ".join(f"{n} {a / 1e6:.0f}, at most {b / 1e6:.0f}" for n, (a, b) in self.memory.items()),
            *(f"VIOLATION {violation}" for violation in self.findings.violations),
            f"{self.findings.kinds.total()} violations {dict(self.findings.kinds)}; again with: make attack SEED={plan.seed} SECONDS={plan.seconds:g}",
        ]
        return "\n".join(parts)


def attack(plan: Plan, folder: Path) -> Report:
    """Run a plan in a folder of its own."""
    chance = random.Random(plan.seed)
    began = audit.Clocks(time.time(), time.monotonic())
    report = Report(plan, audit.Findings(began.steady_s))
    with Children(folder) as children:
        site = Site(folder, children, tcp=plan.tcp)
        site.start_controller()
        site.await_controller()
        site.start_dashboard()
        book = _book_of_stock(chance, plan, site)
        try:
            site.start_engine()
            _attack(site, book, chance, report, began)
        finally:
            site.close()
            site.server.stop()
    return report


def _book_of_stock(chance: random.Random, plan: Plan, site: Site) -> list[Page]:
    """What a vLLM without our plugin answers."""
    with VllmServer(
        endpoint=site.endpoint,
        profile=PROFILES["h800-qwen3-32b-24k"],
        speed=10.0 * SPEED,
        plugin=False,
        prefix_caching=True,
        arguments=server_arguments(),
        ready_s=400.0,
    ) as stock:
        book = answered_by_stock(write_book(chance, plan.pages), stock, PLACES)
    plan.say(f"stock answers {Counter(page.answer.status for page in book)}")
    return book


def _attack(site: Site, book: list[Page], chance: random.Random, report: Report, began: audit.Clocks) -> None:
    findings = report.findings
    watch = audit.MemoryWatch(site)
    with ClientPool(site.server.base_url, book, clients=CLIENTS, seed=report.plan.seed) as clients:
        findings.check("order in force", wait_for(site.ordered, 60.0) is not None, "never at the start")
        audit.check_doors(site, findings)
        kept_from = _strike_all(site, clients, chance, report)
        audit.check_pages(site, findings)
        _stop_idle(site, clients, report)
    report.lines = clients.ledger.lines
    kept = report.lines[kept_from:]
    audit.check_answers(report.lines, findings)
    watch.stop(findings)
    report.memory = {name: (watch.first[name], most) for name, most in watch.most.items()}
    wait_for(lambda: not audit.missing(site, kept), RECORDED_S)
    site.end_controller()
    audit.check_history(site, kept, began, findings)
    audit.check_ends(site, kept, findings)
    audit.check_order(site, findings)


def _strike_all(site: Site, clients: ClientPool, chance: random.Random, report: Report) -> int:
    """Inject every kind, then go on until the time is over; gives the first line of which the history must know."""
    until_s = time.monotonic() + report.plan.seconds
    kept_from = 0
    kinds: list[type[faults.Fault]] = []
    for number in range(10_000):
        kinds = kinds or _shuffled(report.plan.kinds, chance)
        if number >= len(report.plan.kinds) and time.monotonic() > until_s:
            break
        fault = kinds.pop()(site, clients, chance)
        if not fault.possible:
            report.left_out += [fault.name] if fault.name not in report.left_out else []
            continue
        _strike(site, clients, fault, report)
        if fault.loses_history:
            kept_from = len(clients.ledger.lines)
    return kept_from


def _shuffled(kinds: Sequence[type[faults.Fault]], chance: random.Random) -> list[type[faults.Fault]]:
    """In an order of chance, taken from the end: first what loses the history, so that most requests can be looked up."""
    return sorted(chance.sample(list(kinds), len(kinds)), key=lambda kind: kind.loses_history)


def _strike(site: Site, clients: ClientPool, fault: faults.Fault, report: Report) -> None:
    """Inject one fault, see it told, heal it, and see order and answers again."""
    findings, name, ledger = report.findings, fault.name, clients.ledger
    report.plan.say(f"{time.monotonic() - findings.began_s:6.1f} s  {name}")
    report.injected[name] += 1
    fault.inject()
    findings.check(
        "told in time", wait_for(fault.told, fault.told_s) is not None, f"{name}: not within {fault.told_s:g} s"
    )
    time.sleep(fault.lasts_s)
    fault.heal()
    back_s = wait_for(site.ordered, fault.recovers_s)
    findings.check(
        "order in force again",
        back_s is not None,
        f"{name}: not within {fault.recovers_s:g} s: {site.controller_ended() or site.snapshot()}",
    )
    answers = len(ledger.lines)
    wait_for(lambda: len(ledger.lines) > answers + CLIENTS, GOES_ON_S)
    findings.check("clients go on", len(ledger.lines) > answers + CLIENTS, f"after {name}")


def _stop_idle(site: Site, clients: ClientPool, report: Report) -> None:
    """The last answers end while the controller hangs; then the engine is stopped in order: nothing may be lost."""
    report.injected["idle during a hiccup, then stopped"] += 1
    site.send_signal(signal.SIGSTOP)
    clients.stop()
    site.send_signal(signal.SIGCONT)
    time.sleep(1.0)
    site.server.stop()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of all that is drawn (default: the time)")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long faults go on (default %(default)g)")
    parser.add_argument("--only", nargs="*", help="names of fault classes, in place of all")
    parser.add_argument("--tcp", action="store_true", help="engines connect over tcp:// with keys; else by the seed")
    parser.add_argument("--folder", type=Path, help="where logs and history stay (default: nowhere)")
    options = parser.parse_args()
    kinds = [kind for kind in FAULTS if not options.only or kind.__name__ in options.only]
    tcp = options.tcp or options.seed % 3 == 0
    plan = Plan(options.seed, options.seconds, kinds, tcp=tcp, say=_say)
    with tempfile.TemporaryDirectory(prefix="sagesched-attack-") as folder:
        report = attack(plan, options.folder or Path(folder))
    plan.say(report.text())
    return 1 if report.findings.violations else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
