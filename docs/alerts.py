"""Writes the alerts and Grafana's thresholds from the one table of rules, `store.rules`.

``python docs/alerts.py`` renews ``docs/monitoring/alerts.yml`` and the thresholds in ``docs/monitoring/grafana.json``; a test
fails when they are out of date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from store.rules import RULES, AlertRule, Rule, alert_rules

MONITORING = Path(__file__).parent / "monitoring"

_HEAD = """\
# Prometheus alert rules for SageSched. Load them with `rule_files:`; docs/operating.md says what to do upon each.
# Serving goes on during all of these: engines fall back to their own order.
# Made by docs/alerts.py from store/rules.py, as are the thresholds of grafana.json and what the page Now says.
groups:
  - name: sagesched
    rules:
"""

_BUDGETS = """\

  # Burn rates over a long and a short window each, as in the SRE workbook (chapter 5): the long one says that it matters,
  # the short one that it still goes on. Requests outside all classes were promised nothing and raise no alarm.
  - name: sagesched-service-levels
    rules:
"""
_SPANS = ("5m", "30m", "1h", "6h")
_GREEN, _AMBER, _RED = "green", "orange", "red"


def alerts() -> str:
    """The file of Prometheus' rules."""
    made = alert_rules()
    budgets = [alert for alert in made if "slo_miss_ratio" in alert.expr]
    others = [alert for alert in made if alert not in budgets]
    return _HEAD + "\n".join(map(_alert, others)) + _BUDGETS + "".join(map(_record, _SPANS)) + "".join(
        f"\n{_alert(alert)}" for alert in budgets
    )  # fmt: skip


def _record(span: str) -> str:
    missed = f'sum by (class) (rate(sagesched_slo_requests_total{{met="false"}}[{span}]))'
    return (
        f"      - record: sagesched:slo_miss_ratio:rate{span}\n"
        f"        expr: {missed} / sum by (class) (rate(sagesched_slo_requests_total[{span}]))\n"
    )


def _alert(alert: AlertRule) -> str:
    hold = f"        for: {alert.hold}\n" if alert.hold else ""
    return (
        f"      - alert: {alert.name}\n"
        f"        expr: {alert.expr}\n"
        f"{hold}"
        f"        labels:\n"
        f"          severity: {alert.severity}\n"
        f"        annotations:\n"
        f"          summary: {json.dumps(alert.summary)}\n"
        f"          action: {json.dumps(alert.action)}\n"
        f'          runbook_url: "operating.md#{alert.runbook}"\n'
    )


def thresholds(rule: Rule) -> dict[str, Any]:
    """The colours of a Grafana panel; of a state: amiss from 1 on."""
    if rule.below:
        worst = _AMBER if rule.red is None else _RED
        steps = [(worst, None), (_AMBER, rule.red), (_GREEN, rule.amber)]
    elif rule.level is not None:
        steps = [(_GREEN, None), (_RED if rule.level == "red" else _AMBER, 1.0)]
    else:
        steps = [(_GREEN, None), (_AMBER, rule.amber), (_RED, rule.red)]
    given = [(colour, value) for place, (colour, value) in enumerate(steps) if value is not None or place == 0]
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for colour, value in given]}


def board() -> str:
    """Grafana's dashboard with the thresholds of the rules."""
    found: dict[str, Any] = json.loads((MONITORING / "grafana.json").read_text())
    panels = {panel["title"]: panel for panel in found["panels"]}
    for rule in RULES.values():
        for title in rule.panels:
            defaults = panels[title]["fieldConfig"]["defaults"]
            defaults["thresholds"] = thresholds(rule)
            if panels[title]["type"] == "timeseries":
                defaults.setdefault("custom", {})["thresholdsStyle"] = {"mode": "line"}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Renew both files."""
    (MONITORING / "alerts.yml").write_text(alerts())
    (MONITORING / "grafana.json").write_text(board())


if __name__ == "__main__":
    main()
