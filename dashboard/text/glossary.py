"""The words of the dashboard and the documents, each with its meaning in a sentence or two.

`docs/glossary.md` is made of these terms; a page imports `GLOSSARY`, or takes `meaning` for a tooltip.
"""

from __future__ import annotations

from types import MappingProxyType

_TERMS = {
    "answer": "The output tokens of a request.",
    "attained tokens": "Output tokens that a request has so far.",
    "baseline": "A policy that a benchmark compares with, such as FCFS or vLLM's `priority`.",
    "boost": (
        "The rule that lets a cheap request overtake older ones by a bounded time. "
        "It mixes the order of arrival with the order by predicted cost, and so no request starves."
    ),
    "burn rate": (
        "How fast an error budget is used: 1 uses it up exactly at the end of its period, 2 in half of the time."
    ),
    "calibration": "Whether predictions come true as often as they say: half of the answers in the 50% range, and so on.",
    "capacity": "Requests per second that an engine serves while its queue never empties.",
    "cluster": "A group of prompts that are alike. Each prompt cluster has length statistics of its own.",
    "controller": "The process beside vLLM that predicts, decides, records and answers over HTTP.",
    "coverage": "Share of the answers whose length lies inside the predicted range; 90% is right for the 90% range.",
    "CRPS": "Mean distance between a predicted distribution and the actual length, in tokens. Lower is better.",
    "decode": "The part of a request after its first token: one output token in each step.",
    "degraded": "The controller runs, but does less than it should. `/readyz` and *Now* say what and why.",
    "demand": "Requests per second that arrive. Above capacity, the queue grows.",
    "drift": "A lasting change of the lengths of answers. Part of the past is then forgotten.",
    "E2E": "End-to-end latency: from the arrival of a request to its last token. The same as TTLT.",
    "engine": "One vLLM engine with a scheduler of its own. Each data-parallel rank is an engine.",
    "engine adapter": "The part of SageSched that runs inside vLLM's process: the scheduler class and what it imports.",
    "engine-seconds": "Predicted or actual cost of a request: its share of the engine's time and KV memory, in seconds.",
    "error budget": "Share of the requests that an objective allows to miss: 1% for an objective of 99%.",
    "expert": "One predictor of lengths. The prediction is a mixture of all experts, weighted by how well each did lately.",
    "fact": "What an engine reports about a request: arrival, first token, preemption, end.",
    "fallback": "The state of an engine in mode `on` that serves FCFS for the moment, with the reason that it reports.",
    "FCFS": "First come, first served: vLLM's default order.",
    "gain": "How much lower the latency is than under FCFS. It comes from a replay of the latest requests.",
    "gate": (
        "The admission rule: a request starts only while there is KV memory for it and for the expected growth of all "
        "that runs."
    ),
    "Gittins index": "The least cost per chance of finishing, over all amounts of further service. A choice of index.",
    "goodput": "Share of the requests with targets that met all of their targets.",
    "growth": "KV memory that the running requests will still need for their output.",
    "growth reserve": "KV blocks that the gate holds back for growth.",
    "guard": (
        "The check that predictions are right. Where they are not, it uses the prior, or puts the engines of the model "
        "into mode `off`."
    ),
    "history": "All recorded facts, predictions and decisions: Parquet files with a DuckDB catalog, open to SQL.",
    "index": "Expected remaining cost of a request, in engine-seconds. A lower index runs first.",
    "index table": "The index of a request for every number of attained tokens. The engine only looks it up.",
    "ITL": "Inter-token latency: the time between two output tokens of a request.",
    "Jain's index": "Evenness of shares between 1 (equal by weight) and 1/n (one of n tenants has everything).",
    "KV block": "A piece of KV cache memory; 16 tokens unless vLLM's `--block-size` says otherwise.",
    "KV cache": "GPU memory that holds the keys and values of all tokens of the running requests. It limits how many run.",
    "lease": "Time for which an engine follows the last decisions of a silent controller: 2 s, then FCFS.",
    "length distribution": "The predicted probabilities of all lengths of an answer, instead of one number.",
    "load": "Arrival rate divided by the capacity under FCFS. Above 1 the queue grows.",
    "log score": "Mean logarithm of the probability that was predicted for the actual length, in nats. Higher is better.",
    "mode": "`off`: FCFS, recorded. `shadow`: FCFS, with predictions and decisions recorded. `on`: decisions in force.",
    "nat": "Unit of the log score: a difference of 0.1 nats is a factor of 1.1 in probability.",
    "objective": "What the order favours (`mean`, `balanced`, `tail`), or the share of a class that is to meet its targets.",
    "overtaking": "How far a cheap request may pass older ones, in mean times from arrival to end.",
    "P50, P90, P99": "Percentiles: 50, 90 or 99% of the requests are at or below this value.",
    "PIT": "Where actual lengths fall in their predictions, from 0 to 1. Flat is right; a peak at 0 or 1 is a bias.",
    "policy": "The rule that orders, admits and preempts: `sage`, `sagesched-paper` or `fcfs`.",
    "predicted distribution": "The same as length distribution.",
    "preemption": "A running request loses its KV memory and goes back to the queue. Its tokens are computed again later.",
    "prefill": "The computation of a request's prompt, until the first output token.",
    "prefix caching": "vLLM keeps the KV blocks of prompts, so that the next prompt with the same beginning is cheaper.",
    "prior": "The length distribution of all answers of a model. It serves until a request has a prediction of its own.",
    "priority class": "vLLM's `priority` of a request. A lower number always goes first; SageSched orders within a class.",
    "recompute tax": "Share of all computed tokens that were computed again after preemptions.",
    "replay": "Recorded requests served again in virtual time, under the same or another policy.",
    "segment": "A sealed Parquet file of the history.",
    "service class": "A named group of requests with targets and an objective, set by the operator.",
    "session": "Requests of one conversation or agent run. Also: one run of an engine's process.",
    "shadow": "The mode in which everything is predicted, decided and recorded, and nothing is changed.",
    "shedding": "A request that asked for it is ended early, once its target can no longer be met.",
    "slot": "A place among the running requests: vLLM's `--max-num-seqs` counts them.",
    "SLO": "Service level objective: the share of requests that is to meet its targets.",
    "snapshot": "What an engine reports about itself several times a second: queue, KV memory, steps.",
    "step": "One pass of the model. It computes a token for each decoding request, and prompts beside them.",
    "target": "The longest TTFT, TPOT or E2E that a request or its service class asks for.",
    "tenant": "The owner of a request, such as a team or a customer, as the client or its API key says.",
    "TPOT": "Time per output token after the first, as the mean over a request.",
    "TTFT": "Time to first token: from the arrival of a request to its first output token.",
    "TTLT": "Time to last token: from the arrival of a request to its last output token. vLLM says E2E latency.",
    "victim": "The running request that is preempted when KV memory runs out.",
    "virtual time": "A simulation in which steps take as long as a model of the GPU says, and nothing is computed.",
    "watermark": "vLLM's `--watermark`: the share of KV memory that is kept free when a request is admitted.",
}

GLOSSARY = MappingProxyType(dict(sorted(_TERMS.items(), key=lambda item: item[0].casefold())))
"""Meaning of each term, as Markdown, sorted by term."""


def meaning(term: str) -> str:
    """A term and its meaning, for a tooltip or a caption.

    Raises:
        KeyError: The glossary does not have the term.

    >>> meaning("FCFS")
    "FCFS: First come, first served: vLLM's default order."
    """
    return f"{term}: {GLOSSARY[term]}"
