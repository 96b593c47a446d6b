"""What tests of the adapter share: a controller by script, vLLM's platform where none is found, workload files."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine_adapter.workloads.parquet import COLUMNS
from engine_adapter.workloads.rows import Workload
from store.records import (
    Acknowledged,
    Arrived,
    ControllerMessage,
    EngineMessage,
    EngineRules,
    Fact,
    Facts,
    Finished,
    Gate,
    Hello,
    IndexTable,
    Mode,
    Settings,
    Snapshot,
    Welcome,
)

if os.environ.get("SAGESCHED_VLLM_ON_CPU"):
    # A release's Python files alone, without its compiled parts, do not find a platform by themselves.
    platforms: Any = importlib.import_module("vllm.platforms")
    platforms._current_platform = importlib.import_module("vllm.platforms.cpu").CpuPlatform()


@dataclass
class ScriptedController:
    """Answers an engine by a script, keeps all it hears, and acknowledges every batch."""

    indexes: Mapping[str, float] = field(default_factory=dict)
    mode: Mode = "on"
    gate: Gate | None = None
    growth_tokens: float = 10.0
    spoil: Callable[[IndexTable], IndexTable] = lambda table: table
    heard: list[EngineMessage] = field(default_factory=list)
    push: list[ControllerMessage] = field(default_factory=list)
    revision: int = 0

    def __call__(self, message: EngineMessage) -> Iterator[ControllerMessage]:
        """The answers to one message."""
        self.heard.append(message)
        if isinstance(message, Hello):
            yield Welcome(controller_id="script", durable_batch=0)
            yield self.settings()
            yield self._table(None, 1000.0)
        if isinstance(message, Facts):
            yield Acknowledged(batch=message.batch)
            for fact in message.facts:
                if isinstance(fact, Arrived) and fact.request_id in self.indexes:
                    yield self.spoil(self._table(fact.request_id, self.indexes[fact.request_id]))
        pushed, self.push = self.push, []
        yield from pushed

    def settings(self, mode: Mode | None = None) -> Settings:
        """The settings of this script, in another mode if one is given."""
        self.revision += 1
        self.mode = mode or self.mode
        rules = EngineRules(gate=self.gate)  # type: ignore[arg-type]
        return Settings(revision=self.revision, mode=self.mode, lease_s=1e9, rules=rules)  # type: ignore[arg-type]

    def facts(self, kind: type[Fact]) -> list[Any]:
        """All facts of a kind, in the order in which they came."""
        batches = [message for message in self.heard if isinstance(message, Facts)]
        return [fact for batch in batches for fact in batch.facts if isinstance(fact, kind)]

    def finished(self) -> dict[str, Finished]:
        """How each request ended; each exactly once."""
        facts = self.facts(Finished)
        ends = {fact.request_id: fact for fact in facts}
        assert len(ends) == len(facts)
        return ends

    def snapshots(self) -> list[Snapshot]:
        """All snapshots."""
        return [message for message in self.heard if isinstance(message, Snapshot)]

    def _table(self, request_id: str | None, index_s: float) -> IndexTable:
        return IndexTable(
            request_id=request_id,
            attained_tokens=(0,),
            index_s=(index_s,),
            growth_tokens=(self.growth_tokens,),
        )


@pytest.fixture
def scripted() -> type[ScriptedController]:
    """The class of scripted controllers."""
    return ScriptedController


def _write_parquet(workload: Workload, path: Path) -> None:
    rows = [{name: getattr(row, name) for name in COLUMNS} for row in workload.rows]
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def write_parquet() -> Callable[[Workload, Path], None]:
    """Writes the columns that a workload file has."""
    return _write_parquet
