"""Answers of a real vLLM on the CPU to requests of every kind, as JSON: by its own scheduler, or by ours in each mode.

``python tests/real_engine/request_features.py stock FILE`` or ``... sage FILE``: the engine runs in this process, with
three places, and computes a tiny random model.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from engine_adapter.serving.tiny_model import make_tiny_model
from engine_adapter.transport.link import DirectLink, EngineLink
from engine_adapter.vllm_scheduler import SageScheduler
from store.records import (
    Acknowledged,
    Arrived,
    ControllerMessage,
    EngineMessage,
    EngineRules,
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

PLACES = 3
MODES: tuple[Mode, ...] = ("off", "shadow", "on")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 0}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
"""Parameters of a function: a tool call with a named function is an output structured by them."""

REQUESTS: dict[str, SamplingParams] = {
    "short": SamplingParams(max_tokens=6),
    "long": SamplingParams(max_tokens=60, ignore_eos=True),
    "logprobs": SamplingParams(max_tokens=8, logprobs=3),
    "prompt logprobs": SamplingParams(max_tokens=8, prompt_logprobs=2),
    "stop string": SamplingParams(max_tokens=40, stop=["o", "e", "w"], ignore_eos=True),
    "regular expression": SamplingParams(max_tokens=20, structured_outputs=StructuredOutputsParams(regex="[0-9]{6}")),
    "choice": SamplingParams(max_tokens=20, structured_outputs=StructuredOutputsParams(choice=["yes", "no"])),
    "tool call": SamplingParams(max_tokens=60, structured_outputs=StructuredOutputsParams(json=SCHEMA)),
    "three choices": SamplingParams(max_tokens=12, n=3, temperature=0.8, seed=7),
    "penalties": SamplingParams(max_tokens=30, frequency_penalty=0.7, presence_penalty=0.3, ignore_eos=True),
    "minimum": SamplingParams(max_tokens=30, min_tokens=20),
    "last": SamplingParams(max_tokens=25, ignore_eos=True),
}


class Controller:
    """A controller by script: who comes last goes first, and the gate is open for all that fit."""

    def __init__(self) -> None:
        self.mode: Mode = "off"
        self.modes: set[str] = set()
        self.errors = 0
        self.starts: list[tuple[float, str]] = []
        self._revision = 0
        self._arrivals = 0

    def __call__(self, message: EngineMessage) -> Iterator[ControllerMessage]:
        """Answer one message."""
        self._revision += 1
        if isinstance(message, Hello):
            yield Welcome(controller_id="script", durable_batch=0)
            yield self._table(None)
        if isinstance(message, Snapshot):
            self.modes.add(message.mode)
            self.errors = max(self.errors, message.policy_errors)
        if isinstance(message, Facts):
            yield Acknowledged(batch=message.batch)
            for fact in message.facts:
                if isinstance(fact, Arrived):
                    self._arrivals += 1
                    yield self._table(fact.request_id)
                if isinstance(fact, Finished):
                    self.starts.append((fact.scheduled_s or 0.0, fact.request_id))
        rules = EngineRules(gate=Gate(horizon_tokens=64))
        yield Settings(revision=self._revision, mode=self.mode, lease_s=1e9, rules=rules)

    def _table(self, request_id: str | None) -> IndexTable:
        index_s = 1e6 / (1 + self._arrivals)
        return IndexTable(request_id=request_id, attained_tokens=(0,), index_s=(index_s,), growth_tokens=(8.0,))


CONTROLLER = Controller()


class Scripted(SageScheduler):  # type: ignore[misc]
    """The plugin under the script."""

    def _make_link(self, *_given: object) -> EngineLink:
        return DirectLink(CONTROLLER)


def main(kind: str, path: Path) -> None:
    """Serve all requests, with our scheduler in each mode, and write what came."""
    sampling = [_greedy(params) for params in REQUESTS.values()]
    prompts = [f"How many requests wait, {number} or more? {'ten ' * number}" for number in range(len(sampling))]
    with tempfile.TemporaryDirectory() as folder:
        engine = LLM(
            str(make_tiny_model(Path(folder, "model"))),
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            max_num_seqs=PLACES,
            max_model_len=512,
            seed=0,
            scheduler_cls=AsyncScheduler if kind == "stock" else Scripted,
        )
        engine.generate(prompts[:1], SamplingParams(max_tokens=2), use_tqdm=False)
        found = {}
        for CONTROLLER.mode in MODES[:1] if kind == "stock" else MODES:
            engine.generate(prompts[:1], SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
            CONTROLLER.starts.clear()
            outputs = engine.generate(prompts, sampling, use_tqdm=False)
            answers = {name: _plain(output) for name, output in zip(REQUESTS, outputs, strict=True)}
            order = [int(name.split("-")[0].split("_")[-1]) for _, name in sorted(CONTROLLER.starts)]
            found[CONTROLLER.mode] = {"answers": answers, "order": order}
    path.write_text(json.dumps({"found": found, "modes": sorted(CONTROLLER.modes), "errors": CONTROLLER.errors}))


def _greedy(params: SamplingParams) -> SamplingParams:
    """No token by chance, and none twice in a row: the model knows nothing else by itself."""
    if params.n == 1:
        params.temperature = 0.0
        params.repetition_penalty = 1.3
    return params


def _plain(output: Any) -> Any:
    """All that a client is told of an answer, with logprobs to three places, which do not depend on the batch."""
    return {
        "texts": [[choice.text, list(choice.token_ids), choice.finish_reason] for choice in output.outputs],
        "logprobs": [_logprobs(choice.logprobs) for choice in output.outputs],
        "prompt": _logprobs(output.prompt_logprobs),
    }


def _logprobs(positions: Any) -> Any:
    return [
        sorted([token_id, round(found.logprob, 3)] for token_id, found in (position or {}).items())
        for position in positions or ()
    ]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
