"""The generated parts of the documents: commands, settings, metrics, views, queries and terms, taken from the code.

``make reference`` writes them between their markers; a test fails when they are out of date.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from typer.main import get_command

from controller.cli.help import PANELS, panel_of
from controller.cli.main import app
from controller.config import NAMED, ServiceClassSection, described, load_config, printed
from controller.core.core import Core, CoreConfig
from controller.monitoring.live_state import Live
from controller.monitoring.metrics import Metrics
from controller.monitoring.present.metrics import PresentCollector
from controller.monitoring.present.pulse import Pulse
from controller.policy.policies import policy_named
from dashboard.text.glossary import GLOSSARY
from online_learning.evaluation.global_learner import GlobalLearner
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.reading.example_queries import USEFUL_QUERIES
from store.records import Arrived, Facts, Finished, Hello, Snapshot

DOCS = Path(__file__).parent
HELP_WIDTH = 96
"""Characters in a line of a command's help."""


def views() -> str:
    """Every view of the catalog with its columns and their comments."""
    with tempfile.TemporaryDirectory() as folder:
        with HistoryWriter(Path(folder) / "history"):
            pass
        with open_history(Path(folder) / "history") as history:
            names = history.execute(_VIEWS).fetchall()
            columns = history.execute(_COLUMNS).fetchall()
    sections = []
    for name, comment in names:
        rows = [(f"`{column}`", kind, text) for view, column, kind, text in columns if view == name]
        sections.append(f"## `{name}`\n\n{comment}\n\n{_table(('column', 'type', 'meaning'), rows)}")
    return "\n\n".join(sections)


def queries() -> str:
    """The useful queries, by what they are about."""
    groups = dict.fromkeys(query.group for query in USEFUL_QUERIES)
    sections = []
    for group in groups:
        asked = [query for query in USEFUL_QUERIES if query.group == group]
        blocks = "\n\n".join(f"{query.title}:\n\n```sql\n{query.statement}\n```" for query in asked)
        sections.append(f"### {group}\n\n{blocks}")
    return "\n\n".join(sections)


def commands() -> str:
    """Every command by its purpose, then the help of each."""
    group: Any = get_command(app)  # Typer's Click types are private.
    top = _context(group, "sagesched", None)
    by_purpose = sorted(group.commands.items(), key=lambda item: PANELS.index(panel_of(item[1])))
    rows = [
        (panel_of(command), f"[`{name}`](#sagesched-{name})", command.get_short_help_str(limit=HELP_WIDTH))
        for name, command in by_purpose
    ]
    pages = [page for name, command in by_purpose for page in _help_pages(command, name, top)]
    return "\n\n".join((_table(("purpose", "command", "does"), rows), *pages))


def terms() -> str:
    """Every term of the glossary, each with an anchor of its own."""
    return "\n\n".join(f"## {term}\n\n{meaning}" for term, meaning in GLOSSARY.items())


def settings() -> str:
    """Every setting with its default."""
    named = load_config(environment={}).model_copy(update={"classes": {NAMED: ServiceClassSection()}})
    defaults = {"classes": "{}", f"tenants.weights.{NAMED}": "tenants.default_weight"} | dict(printed(named))
    homely = {key: value.replace(str(Path.home()), "~") for key, value in defaults.items()}
    rows = [(f"`{key}`", _default(key, homely), text) for key, text in described()]
    return _table(("setting", "default", "meaning"), rows)


def metrics() -> str:
    """Every metric, as a controller with one engine exports it."""
    found = re.findall(r"^# HELP (\S+) (.*)$", exported(), re.MULTILINE)
    return _table(("metric", "meaning"), sorted((f"`{name}`", text) for name, text in found))


PARTS: dict[str, tuple[tuple[str, Callable[[], str]], ...]] = {
    "commands.md": (("commands", commands),),
    "glossary.md": (("terms", terms),),
    "metrics.md": (("metrics", metrics),),
    "settings.md": (("settings", settings),),
    "sql.md": (("queries", queries),),
    "views.md": (("views", views),),
}


def renewed(document: str, text: str) -> str:
    """The document's text with all its generated parts as they should be now."""
    for name, part in PARTS[document]:
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"{document} has no place for {name}: put {begin} and {end} into it"
        text = f"{before}{begin}\n\n{part()}\n\n{end}{after}"
    return text


def main() -> None:
    """Regenerate all documents."""
    for document in PARTS:
        path = DOCS / document
        path.write_text(renewed(document, path.read_text()))
        sys.stdout.write(f"{path} is up to date\n")


def exported() -> str:
    """The metrics of a controller with one engine and one request of its own, as Prometheus would fetch them."""
    live = Live()
    metrics = Metrics(live)
    metrics.registry.register(PresentCollector(live, Pulse(), Path("/"), lambda: 0.0))
    config = CoreConfig(controller_id="c", mode="on", hash_key=b"k")
    core = Core(learner=GlobalLearner(), policy=policy_named("sage"), config=config, now_s=0.0, timer=lambda: 0.0)
    live.watch(core)
    for message in (_HELLO, Facts(batch=1, facts=(_ARRIVED, _FINISHED), oldest=1), _SNAPSHOT):
        core.handle(b"c", message, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        with HistoryWriter(Path(folder) / "history") as writer:
            writer.append(core.drain_entries())
        live.publish(core, store=writer.stats, loop={}, now_s=0.0)
    return metrics.page().decode()


def _help_pages(command: Any, name: str, parent: Any) -> list[str]:  # noqa: ANN401 - Typer's Click types are private
    """The help of a command and of those below it, each under a heading of its own."""
    context = _context(command, name, parent)
    below = [
        page for inner, one in getattr(command, "commands", {}).items() for page in _help_pages(one, inner, context)
    ]
    return [f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```", *below]


def _context(command: Any, name: str, parent: Any) -> Any:  # noqa: ANN401 - Typer's Click types are private
    return command.context_class(
        command,
        info_name=name,
        parent=parent,
        terminal_width=HELP_WIDTH,
        max_content_width=HELP_WIDTH,
        **command.context_settings,
    )


def _default(key: str, defaults: dict[str, str]) -> str:
    if key == "engine.endpoint":
        return "a socket in the user's runtime directory"
    value = defaults[key]
    return (
        "the policy's" if value == "None" and key.startswith("policy.") else "none" if value == "None" else f"`{value}`"
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


_VIEWS = "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal ORDER BY view_name"
_COLUMNS = """
SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal ORDER BY column_index
"""
_HELLO = Hello(
    engine_id="e",
    session_id="s",
    model="m",
    engine="simulated",
    engine_version="1",
    kv_blocks=1,
    block_size_tokens=16,
    max_num_seqs=1,
    token_budget=1,
    max_model_len_tokens=1,
    prefix_caching=False,
    started_s=0.0,
)
_SNAPSHOT = Snapshot(
    time_s=0.0,
    waiting=0,
    running=0,
    kv_blocks_used=0,
    kv_blocks=1,
    mode="on",
    steps=0,
    step_s=0.0,
    prefill_tokens=0,
    decode_tokens=0,
    kv_tokens_read=0,
    preemptions=0,
    recomputed_tokens=0,
)
_ARRIVED = Arrived(
    request_id="r", arrival_s=0.0, prompt_tokens=1, token_ids=b"\x01\x00\x00\x00", max_tokens=9, temperature=1.0
)
_FINISHED = Finished(
    request_id="r",
    time_s=0.0,
    reason="stop",
    arrival_s=0.0,
    prompt_tokens=1,
    output_tokens=1,
    max_tokens=9,
    cached_prompt_tokens=0,
    expected_cached_tokens=0,
    preemptions=0,
    recomputed_tokens=0,
)

if __name__ == "__main__":
    main()
