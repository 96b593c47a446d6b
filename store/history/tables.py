"""The tables of the history, as SQL text: one per kind of record, and the writer's own books.

Each column has its comment behind it; `statements` turns them into ``COMMENT ON``, so that they can be read in SQL.
Times ``*_s`` that name a moment are Unix seconds of the engine's clock, except ``received_s``: the controller's.
"""

from __future__ import annotations

import re

_KEY = """
    engine_id VARCHAR NOT NULL,  -- Stable name of the engine; empty for what concerns no single engine.
    session_id VARCHAR NOT NULL,  -- Random for each start of the engine; request ids are unique within it.
    batch BIGINT,  -- Number of the batch of facts that brought the row; NULL for what no engine sent in a batch.
    received_s DOUBLE NOT NULL,  -- When the controller handed the row to the history, Unix seconds."""

ARRIVALS = f"""
CREATE TABLE arrivals (  -- Requests that entered an engine's queue; told again (resent) after a controller came back.
    {_KEY}
    request_id VARCHAR NOT NULL,  -- The engine's name of the request.
    arrival_s DOUBLE NOT NULL,  -- When the request entered the engine.
    prompt_tokens BIGINT NOT NULL,  -- Length of the whole prompt.
    token_ids BLOB,  -- Prompt token ids, little-endian uint32; NULL unless the operator had prompts stored.
    max_tokens BIGINT NOT NULL,  -- Limit on the output that the request came with.
    temperature DOUBLE NOT NULL,  -- Sampling temperature.
    priority BIGINT NOT NULL,  -- The request's own strict class; lower is served first.
    tenant VARCHAR,  -- Who sent it, where the engine knows.
    lora VARCHAR,  -- LoRA adapter, if any.
    resent BOOLEAN NOT NULL,  -- Told again to a controller that was away.
    attained_tokens BIGINT NOT NULL,  -- Output tokens when it was sent; not zero only when resent.
)"""

FIRST_TOKENS = f"""
CREATE TABLE first_tokens (  -- First output tokens.
    {_KEY}
    request_id VARCHAR NOT NULL,  -- The engine's name of the request.
    time_s DOUBLE NOT NULL,  -- When the first output token was generated.
    scheduled_s DOUBLE NOT NULL,  -- When the request was first given a place in a step.
    cached_prompt_tokens BIGINT NOT NULL,  -- Prompt tokens that the prefix cache spared.
)"""

PREEMPTIONS = f"""
CREATE TABLE preemptions (  -- Running requests that lost their KV blocks and are computed again.
    {_KEY}
    request_id VARCHAR NOT NULL,  -- The engine's name of the request.
    time_s DOUBLE NOT NULL,  -- When it was preempted.
    lost_tokens BIGINT NOT NULL,  -- Computed tokens whose KV was given up.
    attained_tokens BIGINT NOT NULL,  -- Output tokens generated so far.
    cause VARCHAR NOT NULL,  -- memory: an allocation failed; policy: a better request took the place.
)"""

COMPLETIONS = f"""
CREATE TABLE completions (  -- The ends of requests; complete in themselves, should earlier facts be lost.
    {_KEY}
    request_id VARCHAR NOT NULL,  -- The engine's name of the request.
    time_s DOUBLE NOT NULL,  -- When the request ended.
    reason VARCHAR NOT NULL,  -- stop, length, abort or error.
    arrival_s DOUBLE NOT NULL,  -- When the request entered the engine.
    prompt_tokens BIGINT NOT NULL,  -- Length of the whole prompt.
    output_tokens BIGINT NOT NULL,  -- Tokens generated.
    max_tokens BIGINT NOT NULL,  -- Limit on the output that the request came with.
    cached_prompt_tokens BIGINT NOT NULL,  -- Prompt tokens that the prefix cache spared.
    preemptions BIGINT NOT NULL,  -- How often it was preempted.
    recomputed_tokens BIGINT NOT NULL,  -- Tokens computed again because of that.
    scheduled_s DOUBLE,  -- When it was first given a place in a step; NULL if never.
    first_token_s DOUBLE,  -- When its first output token was generated; NULL if never.
)"""

SNAPSHOTS = f"""
CREATE TABLE snapshots (  -- State of an engine, about ten times a second, with sums since the last one.
    {_KEY}
    time_s DOUBLE NOT NULL,  -- When the snapshot was taken.
    waiting BIGINT NOT NULL,  -- Requests in the queue.
    running BIGINT NOT NULL,  -- Requests with a place in the batch.
    kv_blocks_used BIGINT NOT NULL,  -- KV blocks in use.
    kv_blocks BIGINT NOT NULL,  -- KV blocks that the engine has.
    mode VARCHAR NOT NULL,  -- off, shadow or on: the mode in force in the engine.
    fallback VARCHAR,  -- Why the engine serves first come, first served although told otherwise.
    steps BIGINT NOT NULL,  -- Engine steps since the last snapshot.
    step_s DOUBLE NOT NULL,  -- Sum of their durations.
    prefill_tokens BIGINT NOT NULL,  -- Prompt tokens computed in them.
    decode_tokens BIGINT NOT NULL,  -- Output tokens computed in them.
    kv_tokens_read BIGINT NOT NULL,  -- Sum over the steps of the tokens whose KV was attended to.
    preemptions BIGINT NOT NULL,  -- Preemptions in them.
    recomputed_tokens BIGINT NOT NULL,  -- Tokens computed again in them.
    admission_limit BIGINT,  -- Requests that the gate allows to be active at once; NULL when it does not limit.
    reserved_blocks BIGINT NOT NULL,  -- KV blocks held back for the growth of running requests.
    running_requests STRUCT(request_id VARCHAR, attained_tokens BIGINT, kv_blocks BIGINT)[],  -- What runs; told in about every third snapshot, otherwise NULL.
    queue VARCHAR[],  -- Request ids at the head of the queue, in the order in which they will be tried; likewise.
    tables_held BIGINT NOT NULL,  -- Index tables that the engine holds.
    tables_applied BIGINT NOT NULL,  -- Index tables received for unfinished requests since the engine started.
    messages_dropped BIGINT NOT NULL,  -- Messages dropped at the engine's side since it started.
    policy_errors BIGINT NOT NULL,  -- Errors of ours in the engine since it started.
    hook_s DOUBLE NOT NULL,  -- Time that our code took inside the engine's steps.
    overdue BIGINT NOT NULL,  -- Requests that went first because their patience was over, since the engine started.
)"""

ENGINES = f"""
CREATE TABLE engines (  -- Engines that connected, came back or left.
    {_KEY}
    time_s DOUBLE NOT NULL,  -- When that happened.
    event VARCHAR NOT NULL,  -- connected, reconnected, left or lost.
    model VARCHAR NOT NULL,  -- Model that the engine serves.
    engine VARCHAR NOT NULL,  -- vllm or simulated.
    engine_version VARCHAR NOT NULL,  -- Its version.
    kv_blocks BIGINT NOT NULL,  -- KV blocks that it has.
    block_size_tokens BIGINT NOT NULL,  -- Tokens in a KV block.
    max_num_seqs BIGINT NOT NULL,  -- Requests that it runs at once at most.
    token_budget BIGINT NOT NULL,  -- Tokens that it computes in a step at most.
    max_model_len_tokens BIGINT NOT NULL,  -- Longest prompt and output together.
    prefix_caching BOOLEAN NOT NULL,  -- Whether equal prompt heads are computed once.
    started_s DOUBLE NOT NULL,  -- When the engine process started.
    data_parallel_rank BIGINT NOT NULL,  -- Its rank among data-parallel engines.
)"""

PREDICTIONS = f"""
CREATE TABLE predictions (  -- What was believed of a request's output length.
    {_KEY}
    request_id VARCHAR NOT NULL,  -- The engine's name of the request.
    time_s DOUBLE NOT NULL,  -- When it was predicted.
    cluster BIGINT,  -- Prompt cluster; NULL before there are clusters.
    features BLOB NOT NULL,  -- Prompt features, little-endian float32.
    prompt_hash VARCHAR NOT NULL,  -- Keyed hash of the prompt's token ids.
    mean_tokens DOUBLE NOT NULL,  -- Expected output length.
    p10_tokens BIGINT NOT NULL,  -- 10 % of such answers are at most so long.
    p25_tokens BIGINT NOT NULL,  -- 25 %.
    p50_tokens BIGINT NOT NULL,  -- 50 %.
    p75_tokens BIGINT NOT NULL,  -- 75 %.
    p90_tokens BIGINT NOT NULL,  -- 90 %.
    p95_tokens BIGINT NOT NULL,  -- 95 %.
    p99_tokens BIGINT NOT NULL,  -- 99 %.
    evidence DOUBLE NOT NULL,  -- Effective number of past answers behind the prediction.
    experts MAP(VARCHAR, DOUBLE),  -- Weight of each expert in the mixture.
    predict_s DOUBLE NOT NULL,  -- Time that the prediction took.
)"""

DECISIONS = f"""
CREATE TABLE decisions (  -- Index tables that were published for requests, and why.
    {_KEY}
    request_id VARCHAR NOT NULL,  -- The engine's name of the request.
    time_s DOUBLE NOT NULL,  -- When it was decided.
    policy VARCHAR NOT NULL,  -- Policy that decided.
    reason VARCHAR NOT NULL,  -- arrival, resent or belief.
    cost_s DOUBLE NOT NULL,  -- Expected cost of the whole request in engine-seconds.
    index_s DOUBLE NOT NULL,  -- Index at the attained tokens at that time.
    attained_tokens BIGINT[] NOT NULL,  -- The table's steps: output tokens from which an entry holds.
    table_index_s DOUBLE[] NOT NULL,  -- Index in each step, engine-seconds; lower runs first.
    growth_tokens DOUBLE[] NOT NULL,  -- Expected further output tokens within the gate's horizon in each step.
    patience_s DOUBLE,  -- Time of waiting after which nobody passes it any more; NULL for none.
)"""

OUTCOMES = f"""
CREATE TABLE outcomes (  -- How predictions turned out.
    {_KEY}
    request_id VARCHAR NOT NULL,  -- The engine's name of the request.
    time_s DOUBLE NOT NULL,  -- When the request ended.
    output_tokens BIGINT NOT NULL,  -- Tokens generated.
    censored BOOLEAN NOT NULL,  -- The length is only known to be at least this much.
    cluster BIGINT,  -- Prompt cluster of the prediction.
    pit DOUBLE NOT NULL,  -- Probability integral transform, randomised within its bin; uniform if calibrated.
    crps_tokens DOUBLE NOT NULL,  -- Continuous ranked probability score; lower is better.
    log_score DOUBLE NOT NULL,  -- Log score of the outcome.
    within_50 BOOLEAN NOT NULL,  -- Inside the central 50 % interval.
    within_90 BOOLEAN NOT NULL,  -- Inside the central 90 % interval.
    answer BIGINT NOT NULL,  -- Number of the answer in the order in which the learner was taught.
)"""

DRIFT_EVENTS = f"""
CREATE TABLE drift_events (  -- Length distributions that moved, upon which part of their past was forgotten.
    {_KEY}
    time_s DOUBLE NOT NULL,  -- When it was noticed.
    model VARCHAR NOT NULL,  -- Model whose answers changed.
    cluster BIGINT NOT NULL,  -- Prompt cluster.
    before_mean_tokens DOUBLE NOT NULL,  -- Mean output length before.
    after_mean_tokens DOUBLE NOT NULL,  -- Mean output length after.
    forgotten DOUBLE NOT NULL,  -- Effective number of answers forgotten.
    renewed_requests BIGINT NOT NULL,  -- Unfinished requests whose belief was formed anew for it.
)"""

SETTINGS_HISTORY = f"""
CREATE TABLE settings_history (  -- Settings sent to the engines, and why.
    {_KEY}
    time_s DOUBLE NOT NULL,  -- When they were sent.
    reason VARCHAR NOT NULL,  -- Why they changed.
    revision BIGINT NOT NULL,  -- Number of the settings.
    mode VARCHAR NOT NULL,  -- off, shadow or on.
    gate_horizon_tokens BIGINT,  -- Growth is counted up to so many tokens per request; NULL: no gate.
    gate_margin DOUBLE,  -- Factor on the expected growth; NULL: no gate.
    boost_per_s DOUBLE,  -- γ of the boost; NULL orders by the index alone.
    lease_s DOUBLE NOT NULL,  -- Silence after which the engine falls back to first come, first served.
    victims VARCHAR NOT NULL,  -- Who gives way when KV memory runs out: last in the order or cheapest to compute again.
    preemption_token_s DOUBLE,  -- Price of a computed token that a request loses when another pushes it out; NULL: nobody does.
    preemption_hysteresis DOUBLE,  -- Share by which the index of who pushes out must be lower; NULL: nobody does.
    preemption_rest_steps BIGINT,  -- Steps after a push in which nobody is pushed out.
)"""

CALIBRATION = f"""
CREATE TABLE calibration (  -- How predictions turned out lately: rolling windows for each model and each prompt cluster.
    {_KEY}
    time_s DOUBLE NOT NULL,  -- When it was measured, Unix seconds of the controller's clock.
    model VARCHAR NOT NULL,  -- Model whose answers were predicted.
    scope VARCHAR NOT NULL,  -- model: all its answers; cluster: those of one; rest: those of no cluster watched by itself.
    cluster BIGINT,  -- Prompt cluster; NULL unless the scope is one.
    answers BIGINT NOT NULL,  -- Answers in the window.
    censored BIGINT NOT NULL,  -- Of these, cut: the length is only known to be at least so much.
    coverage_50 DOUBLE NOT NULL,  -- Share inside the central 50 % interval; 0.5 when calibrated.
    coverage_90 DOUBLE NOT NULL,  -- Share inside the central 90 % interval; 0.9 when calibrated.
    crps_tokens DOUBLE NOT NULL,  -- Mean continuous ranked probability score; lower is better.
    log_score DOUBLE NOT NULL,  -- Mean log score in nats; higher is better.
    prior_log_score DOUBLE NOT NULL,  -- The same of the model's prior, which knows nothing of the prompt.
    pinball_tokens DOUBLE NOT NULL,  -- Mean quantile loss over the 10, 25, 50, 75 and 90 % quantiles.
    kendall_tau DOUBLE NOT NULL,  -- Rank correlation of predicted median and length, over the window's latest answers.
    pit_histogram DOUBLE[] NOT NULL,  -- Share of the answers in each tenth of the PIT; a tenth each when calibrated.
    trusted BOOLEAN NOT NULL,  -- Whether the guard lets these predictions be acted upon.
    reason VARCHAR NOT NULL,  -- due, or how trust was lost or came back.
)"""

CLUSTER_CHANGES = f"""
CREATE TABLE cluster_changes (  -- Prompt clusters that came, were divided or went; all models share them.
    {_KEY}
    time_s DOUBLE NOT NULL,  -- When the answer that brought it was learnt.
    kind VARCHAR NOT NULL,  -- born, split, merged or retired.
    cluster BIGINT NOT NULL,  -- Prompt cluster that came (born, split) or went (merged, retired).
    other_cluster BIGINT,  -- The one that it was split from, or merged into; NULL for the others.
)"""

BATCHES = """
CREATE TABLE batches (  -- Batches of facts that are durable, each written in one transaction with its facts.
    session_id VARCHAR NOT NULL,  -- Session of the engine that sent it.
    batch BIGINT NOT NULL,  -- Its number, increasing within the session.
    received_s DOUBLE NOT NULL,  -- When the controller handed it to the history, Unix seconds.
)"""

SESSIONS = """
CREATE TABLE sessions (  -- The last durable batch of each session of an engine.
    session_id VARCHAR PRIMARY KEY,  -- Session of the engine.
    batch BIGINT NOT NULL,  -- Highest durable batch.
    received_s DOUBLE NOT NULL,  -- When it came, Unix seconds.
)"""

SEGMENTS = """
CREATE TABLE segments (  -- Parquet files that hold the sealed rows; never changed once listed.
    sequence BIGINT PRIMARY KEY,  -- Number of the segment, increasing.
    table_name VARCHAR NOT NULL,  -- Table whose rows it holds.
    path VARCHAR NOT NULL,  -- File, relative to the store.
    level BIGINT NOT NULL,  -- How often its rows were compacted.
    schema_version BIGINT NOT NULL,  -- Version of the schema it was written under.
    rows BIGINT NOT NULL,  -- Rows in it.
    bytes BIGINT NOT NULL,  -- Size of the file.
    first_received_s DOUBLE NOT NULL,  -- Earliest received_s in it.
    last_received_s DOUBLE NOT NULL,  -- Latest received_s in it.
    retired_s DOUBLE,  -- When it was compacted or outlived its retention; the file goes after a grace period.
)"""

PROGRESS = """
CREATE TABLE progress (  -- How far the present writer has come; one row.
    writer VARCHAR NOT NULL,  -- Random for each opening of the history.
    position BIGINT NOT NULL,  -- Entries up to this position are durable.
)"""

RECORD_TABLES = (
    "arrivals",
    "first_tokens",
    "preemptions",
    "completions",
    "snapshots",
    "engines",
    "predictions",
    "decisions",
    "outcomes",
    "drift_events",
    "settings_history",
    "calibration",
    "cluster_changes",
)
"""Tables that hold one kind of record each."""

SEALED_TABLES = (*RECORD_TABLES, "batches")
"""Tables whose rows move into segments."""

TABLES = (
    ARRIVALS,
    FIRST_TOKENS,
    PREEMPTIONS,
    COMPLETIONS,
    SNAPSHOTS,
    ENGINES,
    PREDICTIONS,
    DECISIONS,
    OUTCOMES,
    DRIFT_EVENTS,
    SETTINGS_HISTORY,
    CALIBRATION,
    CLUSTER_CHANGES,
    BATCHES,
    SESSIONS,
    SEGMENTS,
    PROGRESS,
)
"""The text of each table."""

_TABLE_LINE = re.compile(r"CREATE TABLE (?P<table>\w+) \(  -- (?P<comment>.+)")
_COLUMN_LINE = re.compile(r"\s+(?P<column>\w+) .+,  -- (?P<comment>.+)")


def statements(create: str) -> list[str]:
    r"""A table's ``CREATE`` and the ``COMMENT ON`` of the table and of each column.

    >>> statements("CREATE TABLE t (  -- Things.\n    a_s DOUBLE,  -- A's time.\n)")[1:]
    ["COMMENT ON TABLE t IS 'Things.'", "COMMENT ON COLUMN t.a_s IS 'A''s time.'"]
    """
    head = _TABLE_LINE.search(create)
    assert head is not None, "a table's text starts with CREATE TABLE name (  -- comment"
    table = head["table"]
    columns = _COLUMN_LINE.finditer(create, head.end())
    return [
        create,
        f"COMMENT ON TABLE {table} IS {quoted(head['comment'])}",
        *(f"COMMENT ON COLUMN {table}.{line['column']} IS {quoted(line['comment'])}" for line in columns),
    ]


def quoted(text: str) -> str:
    """An SQL string literal.

    >>> quoted("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"
