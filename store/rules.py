"""When something is amiss: the one table of *Now*, `status`, the Prometheus alerts and Grafana's thresholds.

Each rule has a level or two limits, says what to do, and names its alerts, whose expressions take the same limits.
``python docs/alerts.py`` writes ``docs/monitoring/alerts.yml`` and the thresholds of ``grafana.json`` from it; a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from store.http_api import DegradedKind

Level: TypeAlias = Literal["green", "info", "amber", "red"]
"""Ascending. info: worth knowing, and nothing is wrong."""

LEVELS: tuple[Level, ...] = get_args(Level)

SEVERITIES: dict[Level, str] = {"info": "info", "amber": "warning", "red": "critical"}
"""Of alerts, in Prometheus' words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A Prometheus alert. ``{limit}`` in its expression stands for the rule's limits: one alert for each."""

    name: str
    expr: str
    hold: str | None = None
    """How long it must hold before it fires, as Prometheus writes it."""
    summary: str
    runbook: str
    """Chapter of the manual."""
    level: Level | None = None
    """Another level than the rule's."""
    action: str | None = None
    """Other words than the rule's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that can be amiss: a state that has a level, or a number that has limits."""

    title: str
    """On *Now*; ``{name}`` is the engine, model or class that it is about."""
    do: str
    """What to do."""
    level: Level | None = None
    """Of a state."""
    amber: float | None = None
    """The limit of a number from which it is amber."""
    red: float | None = None
    below: bool = False
    """Whether the number is amiss below its limits, not above."""
    alerts: tuple[Alert, ...] = ()
    panels: tuple[str, ...] = ()
    """Titles of Grafana's panels that have these limits as thresholds; of a state: amiss from 1 on."""

    def judge(self, value: float) -> Level:
        """The level of a number.

        >>> [RULES["recompute"].judge(share) for share in (0.1, 0.2, 0.5)]
        ['green', 'amber', 'red']
        """
        for level, limit in (("red", self.red), ("amber", self.amber)):
            if limit is not None and (value < limit if self.below else value >= limit):
                return level  # type: ignore[return-value]
        return "green"


WINDOW_S = 600.0
"""Span over which the live rules judge what is not said otherwise."""
OVERLOAD_S = 15.0
"""Shortest span over which demand is compared with what is served: a melting system is named within seconds."""
GROWTH_S = 300.0
"""Span over which a queue that grows slowly is found."""
FEWEST_MISSES = 10
"""Fewer requests that miss their targets raise no alarm."""

_WAIT = "Requests are served in order meanwhile; nothing is lost."
_REDUCE = "Send fewer requests or add an engine. The order keeps short requests fast meanwhile; long ones wait."

_STATES: dict[DegradedKind, tuple[Level, str]] = {
    "loop_failing": ("red", "The controller fails and its engines serve first come, first served"),
    "engine_failing": ("red", "The controller fails on the messages of an engine"),
    "learner_failing": ("red", "The learner fails again and again"),
    "deaf_endpoint": ("red", "No engine can connect"),
    "history_replaced": ("red", "The history's files were removed or replaced"),
    "clock_off": ("amber", "A system clock was set, or two clocks differ"),
    "frames_refused": ("amber", "Messages of engines cannot be read"),
    "facts_damaged": ("amber", "An engine reports what cannot be"),
    "name_shared": ("amber", "Engines share a name"),
    "connection_flood": ("amber", "Strangers connect to the engines' port"),
    "files_near_limit": ("amber", "Open files are near their limit"),
    "history_behind": ("amber", "The disk is too slow for the history"),
    "clock_ahead": ("amber", "The clock is far beyond the history"),
    "learning_past": ("amber", "The past is still being learned"),
}
"""The states of a controller that does less than it should; their texts say what to do."""


def _degraded_alert(level: Level) -> Alert:
    kinds = "|".join(sorted(kind for kind, (found, _) in _STATES.items() if found == level))
    return Alert(
        name="SageSchedDegraded",
        expr=f'sagesched_degraded{{state=~"{kinds}"}} > 0',
        hold="1m",
        summary="The controller does less than it should: {{ $labels.state }}.",
        action="/readyz names the state, /api/state and the dashboard's page Now say what happens meanwhile and what to do.",
        runbook="degraded",
    )


_LOOP_FAILING = Alert(
    name="SageSchedLoopFailing",
    expr="increase(sagesched_tick_errors_total[10m]) > 0",
    summary="{{ $value | humanize }} turns of the control loop failed in ten minutes; an engine, or all, were set to mode off.",
    action="Each distinct failure is logged once, with its traceback. It ends by itself if the failure does not return.",
    runbook="loop-failing",
)
_LAGGING = Alert(
    name="SageSchedHistoryLagging",
    expr=(
        "sagesched_store_queued_entries > 50000 or"
        " time() - sagesched_store_last_commit_timestamp_seconds > 60 and sagesched_store_queued_entries > 0"
    ),
    hold="5m",
    summary="The history is behind: {{ $value | humanize }}.",
    action="Look at the disk's speed and at sagesched_store_commit_seconds.",
    runbook="history-not-written",
)
_OF_STATES: dict[DegradedKind, tuple[Alert, ...]] = {
    "loop_failing": (_degraded_alert("red"), _LOOP_FAILING),
    "clock_off": (_degraded_alert("amber"),),
    "history_behind": (_LAGGING,),
}
"""One alert stands for all states of a level."""


def _burn(long: str, short: str) -> str:
    """Too many misses over a long and a short window, of the classes that were promised something."""
    limit = "> on (class) clamp_max({limit} * (1 - max by (class) (sagesched_slo_objective_ratio)), 0.9)"
    return (
        f'sagesched:slo_miss_ratio:rate{long}{{class!="default (not configured)"}} {limit}'
        f" and on (class) sagesched:slo_miss_ratio:rate{short} {limit}"
        f' and on (class) sum by (class) (increase(sagesched_slo_requests_total{{met="false"}}[{long}])) > {FEWEST_MISSES}'
    )


_SHED = (
    "The page Service says which target and why: send fewer requests, add an engine, or move a tenant to another class."
)
_BUDGET = "Class {{ $labels.class }} misses its targets for {{ $value | humanizePercentage }} of its requests: a 30-day error budget lasts"

RuleName: TypeAlias = str
"""Key of `RULES`: also the metric's label."""

RULES: dict[RuleName, Rule] = {
    "controller_down": Rule(
        title="The controller does not answer",
        level="red",
        do="Start it again with the same --store; its log says why it ended. Engines serve first come, first served meanwhile.",
        alerts=(
            Alert(
                name="SageSchedControllerDown",
                expr='up{job="sagesched"} == 0',
                hold="1m",
                summary="The controller at {{ $labels.instance }} does not answer; engines serve first come, first served.",
                runbook="controller-down",
            ),
        ),
    ),
    "loop_stuck": Rule(
        title="The control loop is stuck",
        red=5.0,
        do="Look at the controller's log and restart it with the same --store.",
        panels=("Loop last turned",),
        alerts=(
            Alert(
                name="SageSchedLoopStuck",
                expr="time() - sagesched_loop_last_turn_timestamp_seconds > {limit}",
                hold="1m",
                summary="The control loop has not turned for {{ $value | humanizeDuration }}.",
                runbook="controller-down",
            ),
        ),
    ),
    "history_not_written": Rule(
        title="History cannot be written",
        level="red",
        do=(
            "Most often the disk is full: free space, and writing resumes. The log names the error. Decisions continue, and engines"
            " keep their facts."
        ),
        alerts=(
            Alert(
                name="SageSchedHistoryNotWritten",
                expr="increase(sagesched_store_errors_total[10m]) > 0",
                hold="2m",
                summary="The history cannot be written; facts wait in the engines.",
                runbook="history-not-written",
            ),
            Alert(
                name="SageSchedHistoryRefusesFacts",
                expr="sagesched_store_refused_total > 0",
                summary="The writer's queue overflowed; nothing is acknowledged until the controller is restarted.",
                action="Repair the disk, then restart the controller: engines send what they kept.",
                runbook="history-not-written",
            ),
        ),
    ),
    "disk_full": Rule(
        title="The disk of the history is nearly full",
        amber=2e9,
        red=2e8,
        below=True,
        do="Free space on it, or lower store.retention_gb. A full disk stops the history, not the serving.",
        panels=("Disk free",),
        alerts=(
            Alert(
                name="SageSchedDiskFull",
                expr="sagesched_store_free_bytes < {limit}",
                hold="2m",
                summary="Only {{ $value | humanize1024 }}B are free on the disk of the history.",
                runbook="history-not-written",
            ),
        ),
    ),
    "engine_lost": Rule(
        title="Engine {name} is lost",
        level="red",
        do=(
            "If its process runs, it serves first come, first served and reconnects by itself: see its log for SageSched, and whether"
            " both sides name the same endpoint. If not, restart it."
        ),
        alerts=(
            Alert(
                name="SageSchedEngineGone",
                expr="sagesched_engine_connected == 0",
                hold="2m",
                summary="Engine {{ $labels.engine_id }} is not connected.",
                runbook="engine-gone",
            ),
        ),
    ),
    "no_engine": Rule(
        title="No engine is connected",
        amber=1.0,
        below=True,
        do=(
            "Start one with `vllm serve MODEL --scheduler-cls engine_adapter.vllm_scheduler.SageScheduler`; it connects at"
            " once, before its first request. Or see everything at work with `sagesched demo`."
        ),
        panels=("Engines connected",),
        alerts=(
            Alert(
                name="SageSchedNoEngine",
                expr='up{job="sagesched"} == 1 unless on (instance) sum by (instance) (sagesched_engine_connected) >= {limit}',
                hold="10m",
                summary="No engine is connected to the controller at {{ $labels.instance }}.",
                runbook="engine-gone",
            ),
        ),
    ),
    "overload": Rule(
        title="Overload: more requests come than the engines serve",
        amber=1.1,
        red=1.3,
        do=_REDUCE,
        panels=("Demand",),
        alerts=(
            Alert(
                name="SageSchedOverload",
                expr='sagesched_demand_ratio{window="now"} > {limit}',
                hold="2m",
                summary="Demand is {{ $value | humanize }} of what the engines serve: the queue grows.",
                runbook="overload",
            ),
        ),
    ),
    "queue_growing": Rule(
        title="The queue grows",
        amber=1.02,
        do=f"If it goes on, send fewer requests or add an engine. {_WAIT}",
        alerts=(
            Alert(
                name="SageSchedQueueGrowing",
                expr='sagesched_demand_ratio{window="5m"} > {limit}',
                hold="10m",
                summary="Demand has been {{ $value | humanize }} of what the engines serve for minutes: the queue grows.",
                runbook="overload",
            ),
        ),
    ),
    "missed_targets": Rule(
        title="{name} misses its targets",
        amber=6.0,
        red=14.4,
        do=_SHED,
        panels=("Burn rate of the error budget",),
        alerts=(
            Alert(
                name="SageSchedErrorBudgetBurnsFast",
                level="red",
                expr=_burn("1h", "5m"),
                summary=f"{_BUDGET} two days.",
                runbook="error-budget-burns",
            ),
            Alert(
                name="SageSchedErrorBudgetBurns",
                level="amber",
                expr=_burn("6h", "30m"),
                summary=f"{_BUDGET} five days.",
                runbook="error-budget-burns",
            ),
        ),
    ),
    "recompute": Rule(
        title="Much is computed twice",
        amber=0.15,
        red=0.4,
        do="Raise policy.gate_margin or policy.gate_horizon_tokens: fewer requests run at once.",
        panels=("Recompute tax",),
        alerts=(
            Alert(
                name="SageSchedRecomputeTaxHigh",
                expr=(
                    "sum by (engine_id) (rate(sagesched_recomputed_tokens_total[10m]))"
                    " / sum by (engine_id) (rate(sagesched_computed_tokens_total[10m])) > {limit}"
                ),
                hold="15m",
                summary="{{ $value | humanizePercentage }} of what engine {{ $labels.engine_id }} computes was computed before.",
                runbook="recompute-tax-high",
            ),
        ),
    ),
    "slow_host": Rule(
        title="The controller's machine is too slow",
        amber=0.4,
        red=0.9,
        do="Give the controller a core of its own and a disk that others do not fill.",
        panels=("Controller held up",),
        alerts=(
            Alert(
                name="SageSchedHostSlow",
                expr="sagesched_loop_held_ratio > {limit}",
                hold="5m",
                summary="The control loop waits for a core or the disk for {{ $value | humanizePercentage }} of the time.",
                runbook="loop-pauses",
            ),
            Alert(
                name="SageSchedLoopPauses",
                level="info",
                expr=(
                    "histogram_quantile(0.999, sum by (instance, cause, le)"
                    " (rate(sagesched_loop_pause_seconds_bucket[10m]))) > 0.05"
                ),
                hold="10m",
                summary="One in a thousand pauses of the control loop takes {{ $value | humanizeDuration }} ({{ $labels.cause }}).",
                action="Give the controller a core of its own; see what the cause means.",
                runbook="loop-pauses",
            ),
        ),
    ),
    "late_controller": Rule(
        title="The controller is late",
        amber=0.05,
        red=0.5,
        do="Give it a faster core of its own, or spread the engines over two controllers.",
        panels=("Controller late",),
        alerts=(
            Alert(
                name="SageSchedControllerLate",
                expr="sagesched_loop_late_ratio > {limit}",
                hold="5m",
                summary="The control loop spends {{ $value | humanizePercentage }} of the time in turns of more than half a second.",
                runbook="loop-pauses",
            ),
        ),
    ),
    "behind": Rule(
        title="The controller is behind with learning",
        amber=1000.0,
        do="Give it a faster core of its own, or spread the engines over two controllers. Arrivals go first meanwhile.",
        alerts=(
            Alert(
                name="SageSchedControllerOverloaded",
                expr="sagesched_backlog > {limit} or increase(sagesched_not_learnt_total[10m]) > 0",
                hold="5m",
                summary="The controller is behind with learning: {{ $value | humanize }}.",
                runbook="controller-overloaded",
            ),
        ),
    ),
    "engine_fallback": Rule(
        title="Engine {name} has fallen back to first come, first served",
        level="amber",
        do="It ends by itself once the cause is gone.",
        panels=("Engines in fallback",),
        alerts=(
            Alert(
                name="SageSchedEngineFallback",
                expr="sagesched_engine_fallback == 1",
                hold="2m",
                summary="Engine {{ $labels.engine_id }} serves first come, first served although the mode is on.",
                action="Its reason is in /api/state and on the dashboard's page Now.",
                runbook="engine-fallback",
            ),
            Alert(
                name="SageSchedEnginePolicyErrors",
                expr="increase(sagesched_engine_policy_errors_total[10m]) > 0",
                summary="The plugin failed {{ $value | humanize }} times inside engine {{ $labels.engine_id }}; it served its own order meanwhile.",
                action="vLLM's log has each distinct failure once, with its traceback.",
                runbook="engine-fallback",
            ),
        ),
    ),
    "engine_silent": Rule(
        title="Engine {name} is silent",
        amber=5.0,
        do="It reports once a second even when idle. See whether its process hangs: what is shown of it is old.",
        alerts=(
            Alert(
                name="SageSchedEngineSilent",
                expr=(
                    "time() - sagesched_engine_last_message_timestamp_seconds > {limit}"
                    " and sagesched_engine_connected == 1"
                ),
                hold="1m",
                summary="Engine {{ $labels.engine_id }} is connected and has sent nothing for {{ $value | humanizeDuration }}.",
                runbook="engine-gone",
            ),
        ),
    ),
    "messages_dropped": Rule(
        title="Engine {name} drops messages",
        level="amber",
        do="One side does not keep up: give the controller a core of its own.",
        alerts=(
            Alert(
                name="SageSchedMessagesDropped",
                expr=(
                    "increase(sagesched_engine_messages_dropped_total[10m]) > 0"
                    " or increase(sagesched_messages_lost_total[10m]) > 0"
                ),
                hold="5m",
                summary="Messages between engine and controller are dropped.",
                runbook="messages-dropped",
            ),
        ),
    ),
    "impossible_requests": Rule(
        title="Engine {name} has requests that it can never serve",
        level="amber",
        do="Its log names them: abort them, lower --max-model-len, or give the engine more KV memory. All others go first.",
        alerts=(
            Alert(
                name="SageSchedRequestImpossible",
                expr="sagesched_engine_impossible_requests > 0",
                hold="1m",
                summary="{{ $value | humanize }} requests in engine {{ $labels.engine_id }} need more KV memory than it has; they can never run.",
                runbook="impossible-requests",
            ),
        ),
    ),
    "damaged_history": Rule(
        title="Files of the history are damaged",
        level="amber",
        do="The log names them. Put copies of them in their places and their rows are back within seconds.",
        alerts=(
            Alert(
                name="SageSchedHistoryDamaged",
                expr="sagesched_store_damaged_segments > 0",
                hold="1m",
                summary="{{ $value | humanize }} files of the history are missing or damaged.",
                runbook="history-not-written",
            ),
        ),
    ),
    "distrusted": Rule(
        title="The predictions for {name} are not trusted",
        level="amber",
        do="It ends by itself once predictions are right again; the page Predictions shows them.",
        panels=("Models not trusted",),
        alerts=(
            Alert(
                name="SageSchedPredictionsDistrusted",
                expr="sagesched_calibration_trusted == 0",
                hold="10m",
                summary="Predictions for {{ $labels.model }} turn out wrong; its engines serve their own order.",
                runbook="predictions-distrusted",
            ),
            Alert(
                name="SageSchedPredictionsMiscalibrated",
                level="info",
                expr="sagesched_calibration_coverage_90 < 0.75 and sagesched_calibration_answers >= 200",
                hold="30m",
                summary="Only {{ $value | humanizePercentage }} of the answers of {{ $labels.model }} fall into their 90% range.",
                action="Look at the page Predictions: a drift shows there, and by which prompts.",
                runbook="predictions-distrusted",
            ),
        ),
    ),
} | {
    kind: Rule(title=title, level=level, do="", alerts=_OF_STATES.get(kind, ()))
    for kind, (level, title) in _STATES.items()
}
"""Every rule by its name, also the label of ``sagesched_finding``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One alert as Prometheus loads it."""

    name: str
    expr: str
    hold: str | None
    severity: str
    summary: str
    action: str
    runbook: str


def alert_rules() -> list[AlertRule]:
    """The alerts of all rules, one for each of their limits."""
    return [made for rule in RULES.values() for alert in rule.alerts for made in _made(rule, alert)]


def _made(rule: Rule, alert: Alert) -> list[AlertRule]:
    limits: dict[Level, float | None] = {"amber": rule.amber, "red": rule.red}
    levels = [alert.level or rule.level] if alert.level or rule.level else [le for le, at in limits.items() if at]
    return [
        AlertRule(
            name=alert.name,
            expr=alert.expr.replace("{limit}", f"{limits.get(level) or 0:g}"),
            hold=alert.hold,
            severity=SEVERITIES[level],
            summary=alert.summary,
            action=alert.action or rule.do,
            runbook=alert.runbook,
        )
        for level in levels
        if level is not None
    ]
