"""Workloads whose requests say more than their prompts, to measure what that is worth.

`agents OUT.parquet` makes programs of 2 calls or more, each with a level of its own, whose calls of tools are answered with
44 tokens in the median and whose last answers with 444. `dialogues OUT.parquet HH_RLHF.parquet` takes each assistant's turn of
recorded dialogues for a request of its dialogue; earlier turns' tokens are estimated from their text.
`expected OUT.parquet LMSYS.parquet` takes recorded lengths, with the median length of the class that a BERT model predicted
for the length that a client expects. `measure WORKLOAD.parquet` scores the mixture with and without what these say, first
predicting and then learning, and times both with the CPU clock of the thread.
Usage: python docs/hinted_workloads.py agents|dialogues|expected|measure FILE.parquet [SOURCE.parquet]
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from rich.console import Console

from controller.benchmark.prediction.study import quality_table, task_prompts
from engine_adapter.workloads.token_ids import count_tokens
from online_learning.evaluation.prequential import evaluate
from online_learning.mixture.mixture import MixtureLearner

SEED = 5
REQUESTS = 6_000
WARMUP = 1_500
ACTIVE_PROGRAMS = 48
CALLS = 6.0
"""Mean number of calls of a program beside its first and its last."""
LEVEL, NOISE = 0.6, 0.3
"""Deviation of the logarithm of lengths between programs, and within one."""
HONEST = 0.8
"""Share of prompts whose words tell whether the answer is a program's last."""
TURN_S = 20.0
Row = dict[str, Any]


def main(kind: str, target: str, *source: str) -> None:
    """Write one of the workloads, or measure one."""
    if kind == "measure":
        measure(target)
        return
    made: dict[str, Callable[..., Iterator[Row]]] = {"agents": agents, "dialogues": dialogues, "expected": expected}
    rows = list(made[kind](*source))
    columns = {"task": kind, "model": "served", "prompt": None, "arrival_s": None, "client": None}
    names = [*columns, "prompt_len_tokens", "response_len_tokens", "session", "expected_output_tokens"]
    table = {name: [row.get(name, columns.get(name)) for row in rows] for name in names}
    table["prompt_len_tokens"] = [row.get("prompt_len_tokens") or count_tokens(row["prompt"]) for row in rows]
    parquet.write_table(pa.table(table), target)


def measure(workload: str) -> None:
    """Print the quality and the cost of the mixture with and without the experts of hints."""
    requests = parquet.read_metadata(workload).num_rows
    prompts = [(prompt, tokens) for _, prompt, tokens in task_prompts(workload, requests=requests, seed=SEED)]
    learners = {"mixture": MixtureLearner(), "without them": MixtureLearner(specialists=[])}
    result = evaluate(prompts, learners, warmup=WARMUP, clock=time.thread_time)
    Console(width=160).print(quality_table(result))
    for name, weight in result.learners["mixture"].expert_weights.items():
        sys.stdout.write(f"{name}: {weight:.3f}\n")


def agents() -> Iterator[Row]:
    """Calls of programs that run side by side."""
    generator = np.random.default_rng(SEED)
    words = np.array([f"w{number}x" for number in range(120)])
    programs: list[tuple[str, int, float]] = []
    for number in range(REQUESTS):
        while len(programs) < ACTIVE_PROGRAMS:
            name = f"program-{number}-{len(programs)}"
            programs.append((name, 1 + int(generator.poisson(CALLS)), LEVEL * generator.normal()))
        chosen = int(generator.integers(ACTIVE_PROGRAMS))
        name, left, level = programs.pop(chosen)
        if left > 0:
            programs.append((name, left - 1, level))
        length = (44 if left > 0 else 444) * np.exp(level + NOISE * generator.normal())
        told = words[:40] if (left > 0) == (generator.random() < HONEST) else words[40:80]
        prompt = " ".join(generator.choice(told, 25)) + " " + " ".join(generator.choice(words[80:], 10))
        yield {
            "prompt": prompt,
            "response_len_tokens": max(1, int(length)),
            "arrival_s": float(number),
            "session": name,
        }


def dialogues(source: str) -> Iterator[Row]:
    """Turns of dialogues that run side by side, in order of time."""
    wanted = ["model", "session", "prompt", "response_len_tokens"]
    recorded = [
        row for row in parquet.read_table(source, columns=wanted).to_pylist() if row["model"].endswith("chosen")
    ]
    generator = np.random.default_rng(SEED)
    turns = [
        turn for row in recorded for turn in _turns(row, float(generator.uniform(0.0, TURN_S * len(recorded) / 50)))
    ]
    yield from sorted(turns, key=lambda turn: float(turn["arrival_s"]))


def _turns(row: Row, start_s: float) -> Iterator[Row]:
    parts = re.split(r"(?=\n\nAssistant:)", row["prompt"])
    for number in range(1, len(parts) + 1):
        is_last = number == len(parts)
        answer = "" if is_last else parts[number].removeprefix("\n\nAssistant:").partition("\n\nHuman:")[0]
        yield {
            "prompt": "".join(parts[:number]),
            "response_len_tokens": row["response_len_tokens"] if is_last else count_tokens(answer),
            "arrival_s": start_s + TURN_S * number,
            "session": str(row["session"]),
        }


def expected(source: str) -> Iterator[Row]:
    """Recorded lengths with what was predicted of them; there is no text."""
    recorded = parquet.read_table(source, columns=["response_len_tokens", "predicted_class"]).to_pandas()
    medians = recorded.groupby("predicted_class").response_len_tokens.median()
    for number, row in enumerate(recorded.head(REQUESTS).itertuples()):
        yield {
            "prompt_len_tokens": 20,
            "response_len_tokens": int(row.response_len_tokens),
            "arrival_s": float(number),
            "expected_output_tokens": int(medians[row.predicted_class]),
        }


if __name__ == "__main__":
    main(*sys.argv[1:])
