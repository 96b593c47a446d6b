import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from store.http_api import DegradedKind
from store.rules import RULES, alert_rules

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MONITORING = DOCS / "monitoring"
KEDA = ROOT / "docs" / "deploy" / "keda-scaledobject.yaml"
ALERT = re.compile(r"- alert: (?P<name>\w+)\n(?P<body>(?:(?!\n\n).)*)", re.DOTALL)
METRIC = re.compile(r"\bsagesched_\w+")


@pytest.fixture(scope="module")
def page(docs_script: Callable[[str], ModuleType]) -> str:
    """What a controller with one engine exports."""
    return str(docs_script("reference").exported())


@pytest.fixture(scope="module")
def names(page: str) -> set[str]:
    """Every name that a query may use, with the parts of histograms."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    parts = {
        f"{name}_{part}" for name, kind in kinds.items() if kind == "histogram" for part in ("bucket", "sum", "count")
    }
    return set(kinds) | parts


def expressions(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def test_every_metric_in_rules_and_dashboard_exists(names: set[str]) -> None:
    """No alert waits for, and no panel shows, a metric that no controller exports."""
    board = json.loads((MONITORING / "grafana.json").read_text())
    used = set(METRIC.findall((MONITORING / "alerts.yml").read_text()))
    used |= {name for expression in expressions(board) for name in METRIC.findall(expression)}
    used |= {name for page in ("operating", "metrics") for name in METRIC.findall((DOCS / f"{page}.md").read_text())}
    assert len(used) > 50
    assert used - names == set()


def test_every_alert_says_what_to_do_and_where_it_is_written() -> None:
    """Each has a severity, a summary, an action, and a chapter of docs/operating.md that names it."""
    document = (ROOT / "docs" / "operating.md").read_text()
    chapters = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"): body
        for title, body in re.findall(r"^#{2,4} (.+)\n((?:(?!^#{2,4} ).*\n?)*)", document, re.MULTILINE)
    }
    alerts = ALERT.findall((MONITORING / "alerts.yml").read_text())
    assert len(alerts) == len(alert_rules()) > 20
    for name, body in alerts:
        assert re.search(r"severity: (info|warning|critical)", body), name
        assert re.search(r'summary: ".+"', body), name
        assert re.search(r'action: ".+"', body), name
        link = re.search(r'runbook_url: "operating\.md#([\w-]+)"', body)
        assert link is not None, name
        assert f"`{name}`" in chapters[link[1]], f"docs/operating.md does not name {name} under #{link[1]}"


def test_alerts_and_thresholds_are_those_of_the_rules(docs_script: Callable[[str], ModuleType]) -> None:
    """Made from the one table that *Now* and `status` judge by: `python docs/alerts.py`."""
    made = docs_script("alerts")
    assert (MONITORING / "alerts.yml").read_text() == made.alerts()
    assert (MONITORING / "grafana.json").read_text() == made.board()


def test_every_rule_that_turns_now_amber_or_red_has_an_alert_with_its_limits() -> None:
    """States of one level share an alert that names them; a number's alerts compare it with each of its limits."""
    made = alert_rules()
    states = " ".join(alert.expr for alert in made if alert.name == "SageSchedDegraded")
    for name, rule in RULES.items():
        if name in get_args(DegradedKind):
            assert name in states
            continue
        severities = {alert.severity for each in rule.alerts for alert in made if alert.name == each.name}
        wanted = {
            severity for severity, limit in (("warning", rule.amber), ("critical", rule.red)) if limit is not None
        }
        assert severities >= (wanted or {{"amber": "warning", "red": "critical"}[rule.level or "amber"]}), name
        for limit in filter(None, (rule.amber, rule.red)):
            assert any(
                f"{limit:g}" in alert.expr for each in rule.alerts for alert in made if alert.name == each.name
            ), name


def test_every_panel_says_what_it_shows_and_places_do_not_overlap() -> None:
    """A dashboard that can be imported: own ids, a description each, a grid without collisions."""
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_promtool_accepts_the_rules_and_they_fire_when_they_must(promtool: str) -> None:
    """Syntax, and made-up series on which each of several alerts fires and does not."""
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [promtool, *command], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_the_metrics(promtool: str, page: str) -> None:
    """Names, units and help texts are as Prometheus wants them."""
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == ""


def test_promtool_understands_every_query_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    """Each expression, with Grafana's variables filled in, is one that Prometheus can evaluate."""
    board = json.loads((MONITORING / "grafana.json").read_text())
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$engine", ".*")}
        for number, expression in enumerate(expressions(board))
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_degraded_state_has_a_title_on_now_and_a_row_in_the_manual() -> None:
    """Whatever the controller names, an operator finds what it means and what to do."""
    manual = (ROOT / "docs" / "operating.md").read_text()
    assert set(get_args(DegradedKind)) < RULES.keys()
    assert [kind for kind in get_args(DegradedKind) if f"| `{kind}` |" not in manual] == []


def test_the_autoscaler_s_query_asks_for_a_metric_that_exists(names: set[str]) -> None:
    """With a threshold in its own unit, seconds."""
    (query,) = re.findall(r"^ +query: (.+)$", KEDA.read_text(), re.MULTILINE)
    assert METRIC.findall(query) == ["sagesched_engine_backlog_seconds"]
    assert set(METRIC.findall(query)) <= names
    assert re.search(r'^ +threshold: "\d+"$', KEDA.read_text(), re.MULTILINE)
