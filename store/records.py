r"""The frozen records that cross borders: engine to controller, controller to engine, controller to store.

All records are immutable msgspec structs, tagged with their class name, so that a union of them decodes by itself.
A reader ignores fields it does not know and gives defaults to those it misses: adding a field with a default
is compatible, anything else raises `PROTOCOL`.

Units are last in names and base units inside.
Every ``*_s`` that names a moment (``time_s``, ``arrival_s``) is in Unix seconds of the engine's clock;
every ``*_s`` that names a span (``step_s``, ``lease_s``) is in seconds.

>>> frame = encode(Acknowledged(batch=1))
>>> decode_controller_message(frame)
Acknowledged(batch=1)
>>> decode_controller_message(b"\x63" + frame[1:])
Traceback (most recent call last):
store.errors.ProtocolError: frame speaks protocol 99, this side speaks 1: run the same release on both sides
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec

from store.bounds import (
    MAX_BATCH_FACTS,
    MAX_REQUESTS_NAMED,
    Class,
    Count,
    Name,
    RequestId,
    Seconds,
    Size,
    Span,
    TargetSpan,
    Temperature,
    Text,
    TokenIds,
)
from store.errors import ProtocolError

PROTOCOL = 1
"""Version of the border between engine and controller; the first byte of every frame."""

Mode: TypeAlias = Literal["off", "shadow", "on"]
FinishReason: TypeAlias = Literal["stop", "length", "abort", "error"]
PreemptionCause: TypeAlias = Literal["memory", "policy"]
Victims: TypeAlias = Literal["last", "later", "cheapest"]
"""Which running request is preempted when KV memory runs out: the last in the order, the last but never the one that
arrived first, or the cheapest to recompute."""


class Record(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Base of all records; carries no fields of its own.

    Records hold values only and cannot form cycles, so the garbage collector skips the hundreds of thousands that a
    controller keeps: its pauses would grow with them.
    """


class Targets(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a request, or its service class, asks of the server; each span is in seconds, None where nothing is asked."""

    ttft_s: TargetSpan | None = None
    """Longest time to first token."""
    tpot_s: TargetSpan | None = None
    """Longest mean time per output token after the first."""
    e2e_s: TargetSpan | None = None
    """Longest time from arrival to the last token."""


# --- engine to controller -------------------------------------------------------------------------


class Hello(Record, frozen=True, kw_only=True):
    """An engine introduces itself; the first message of every connection."""

    engine_id: Name
    """Stable name of the engine across its restarts."""
    session_id: Name
    """Random for each start of the engine process; request ids are unique within it."""
    model: Name
    """Model that the engine serves."""
    engine: Literal["vllm", "simulated"]
    """vllm or simulated."""
    engine_version: str
    """Its version."""
    kv_blocks: Size
    """KV blocks that it has; a token of a model with several groups of layers takes one in each group that keeps it."""
    block_size_tokens: Size
    """Tokens in a KV block of a request as long as the model's context, so that times ``kv_blocks`` it is the tokens
    whose KV the engine holds at most."""
    max_num_seqs: Size
    """Requests that it runs at once at most."""
    token_budget: Size
    """Tokens that it computes in a step at most."""
    max_model_len_tokens: Size
    """Longest prompt and output together."""
    prefix_caching: bool
    """Whether equal prompt heads are computed once."""
    started_s: Seconds
    """When the engine process started."""
    data_parallel_rank: Count = 0
    """Its rank among data-parallel engines."""
    contract: Text | None = None
    """What it found of the names and behaviours that the plugin relies on, in a line; None where nothing is checked."""


class Arrived(Record, frozen=True, kw_only=True):
    """A request entered the engine's queue, or is sent again after a `Welcome` (``resent``)."""

    request_id: RequestId
    """Its id in the engine; one whose client's part has more than 256 characters is cut and holds a hash of the whole."""
    arrival_s: Seconds
    """When the request entered the engine."""
    prompt_tokens: Count
    """Length of the whole prompt."""
    token_ids: TokenIds
    """Prompt token ids, little-endian uint32, at most `MAX_PROMPT_TOKENS_SENT` of them (head and tail)."""
    max_tokens: Size
    """Limit on the output that the request came with."""
    temperature: Temperature
    """Sampling temperature."""
    priority: Class = 0
    """The request's own strict class; lower is served first."""
    tenant: Name | None = None
    """Sender of the request, if the engine knows it; cut like a request id."""
    lora: Name | None = None
    """LoRA adapter, if any."""
    session: Name | None = None
    """Conversation or agent's program that the request belongs to, if its client says; cut like a request id."""
    service_class: Name | None = None
    """Service class that the request names; cut like a request id."""
    targets: Targets | None = None
    """Targets that the request brings itself, in place of those of its class."""
    expected_output_tokens: Size | None = None
    """Output length that the client expects."""
    sheds: bool = False
    """Whether the client prefers an early error to an answer that is certainly late."""
    resent: bool = False
    """Whether the arrival is sent again, to a controller that was away."""
    attained_tokens: Count = 0
    """Output tokens generated when it was sent; not zero only when ``resent``."""

    def __post_init__(self) -> None:
        if len(self.token_ids) % 4:
            raise ValueError(f"token_ids has {len(self.token_ids)} bytes: each token id takes four")


class FirstToken(Record, frozen=True, kw_only=True):
    """The first output token of a request was generated."""

    request_id: RequestId
    time_s: Seconds
    """When the first output token was generated."""
    scheduled_s: Seconds
    """When the request was first given a place in a step."""
    cached_prompt_tokens: Count
    """Prompt tokens found in the prefix cache."""


class Preempted(Record, frozen=True, kw_only=True):
    """A running request lost its KV blocks and will be recomputed."""

    request_id: RequestId
    time_s: Seconds
    """When it was preempted."""
    lost_tokens: Count
    """Computed tokens (prompt and output) whose KV was discarded."""
    attained_tokens: Count
    """Output tokens generated so far."""
    cause: PreemptionCause = "memory"
    """memory: an allocation failed; policy: a request with a lower index took the slot."""


class Finished(Record, frozen=True, kw_only=True):
    """The last fact of a request; complete in itself in case earlier ones are lost."""

    request_id: RequestId
    time_s: Seconds
    """When the request ended."""
    reason: FinishReason
    """stop, length, abort or error."""
    arrival_s: Seconds
    """When the request entered the engine."""
    prompt_tokens: Count
    """Length of the whole prompt."""
    output_tokens: Count
    """Tokens generated."""
    max_tokens: Count
    """Limit on the output that the request came with."""
    cached_prompt_tokens: Count
    """Prompt tokens found in the prefix cache."""
    preemptions: Count
    """How often it was preempted."""
    recomputed_tokens: Count
    """Tokens recomputed after preemptions."""
    scheduled_s: Seconds | None = None
    """When it was first given a place in a step; None if never."""
    first_token_s: Seconds | None = None
    """When its first output token was generated; None if never."""
    expected_cached_tokens: Count | None = None
    """Prompt tokens that the plan expected in the prefix cache when it last looked before ``scheduled_s``; None if it
    never did."""
    itl_max_s: Seconds | None = None
    """Longest time between two of its output tokens; None with fewer than two."""
    itl_p99_s: Seconds | None = None
    """99% quantile of the times between its output tokens; None with fewer than two."""
    shed: Text | None = None
    """Why the request was ended before it was served, as its client had asked for; None if it was not."""


Fact: TypeAlias = Arrived | FirstToken | Preempted | Finished


class Facts(Record, frozen=True, kw_only=True):
    """A numbered batch of facts; the engine keeps it until a controller acknowledges it as durable."""

    batch: Count
    """Increases by 1 within a session."""
    facts: Annotated[tuple[Fact, ...], msgspec.Meta(max_length=MAX_BATCH_FACTS)]
    oldest: Count
    """The oldest batch that the engine retains: a missing batch from this one on will be resent, an older one was
    dropped."""
    damaged: Count = 0
    """Facts of it that the controller could not read, or only after putting a count into its range; set where it is read."""


class RunningRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One running request in a `Snapshot`."""

    request_id: RequestId
    attained_tokens: Count
    kv_blocks: Count


class Snapshot(Record, frozen=True, kw_only=True):
    """State of the engine and sums since the last snapshot; sent about ten times a second, never resent."""

    time_s: Seconds
    """When the snapshot was taken."""
    waiting: Count
    """Requests in the queue."""
    running: Count
    """Requests that run."""
    kv_blocks_used: Count
    """KV blocks in use."""
    kv_blocks: Size
    """KV blocks that the engine has."""
    mode: Mode
    """off, shadow or on: the mode in force in the engine, which is off during a fallback."""
    fallback: Text | None = None
    """Why the engine serves first come, first served against the controller's mode."""
    steps: Count
    """Engine steps since the last snapshot."""
    step_s: Seconds
    """Sum of the durations of those steps."""
    prefill_tokens: Count
    """Prompt tokens computed in them."""
    decode_tokens: Count
    """Output tokens computed in them."""
    kv_tokens_read: Count
    """Sum over steps of the tokens whose KV was attended to."""
    preemptions: Count
    """Preemptions in them."""
    recomputed_tokens: Count
    """Tokens recomputed in them."""
    admission_limit: int | None = None
    """Requests that the gate allows to be active at once; None when it does not limit."""
    reserved_blocks: Count = 0
    """KV blocks reserved for the growth of running requests."""
    step_tokens: Count | None = None
    """Tokens of a step at most, below the engine's own budget; None while that is in force."""
    chunk_tokens: Count | None = None
    """Tokens of one prompt in a step at most, below the engine's own limit; None while that is in force."""
    impossible: Count = 0
    """Unfinished requests that need more KV memory than the engine has; they go behind all others."""
    detailed: bool = True
    """Whether the snapshot has the lists; about every third has, because they are most of its cost."""
    running_requests: Annotated[tuple[RunningRequest, ...], msgspec.Meta(max_length=MAX_REQUESTS_NAMED)] = ()
    """The running requests."""
    queue: Annotated[tuple[RequestId, ...], msgspec.Meta(max_length=MAX_REQUESTS_NAMED)] = ()
    """Request ids at the head of the waiting queue, in the order of admission."""
    tables_held: Count = 0
    """Index tables that the engine holds."""
    tables_applied: Count = 0
    """Index tables received for requests that were unfinished, since the engine started."""
    messages_dropped: Count = 0
    """Messages dropped on the engine's side, since the engine started."""
    names_cut: Count = 0
    """Request ids, tenants and adapter names that were too long or could not be shown, and were cut, since it started."""
    clock_off_s: Span = 0.0
    """System clock minus the engine's own, which never jumps: the steps of the system clock since the engine started."""
    stamps_replaced: Count = 0
    """Arrivals whose front end's stamp could not be, so that the engine's own time stands for it, since it started."""
    policy_errors: Count = 0
    """Errors of the scheduling policy in the engine, since it started."""
    hook_s: Seconds = 0.0
    """Time that the policy's hooks took inside the engine's steps, summed like ``step_s``."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, nothing runs, and no step was made since the last one."""
        return not (self.waiting or self.running or self.steps)


class Goodbye(Record, frozen=True, kw_only=True):
    """The engine shuts down cleanly."""

    time_s: Seconds


EngineMessage: TypeAlias = Hello | Facts | Snapshot | Goodbye

# --- controller to engine -------------------------------------------------------------------------


class Welcome(Record, frozen=True, kw_only=True):
    """Answer to `Hello`: the engine drops what is durable, sends the rest and every unfinished request again."""

    controller_id: str
    durable_batch: int
    """Highest batch number of this session that the history already holds; 0 for none."""


class Acknowledged(Record, frozen=True, kw_only=True):
    """All batches up to this one are durable."""

    batch: int


class IndexTable(Record, frozen=True, kw_only=True):
    """Index and expected growth of one request as step functions of its attained tokens.

    Entry ``i`` holds from ``attained_tokens[i]`` up to the next entry; the first is 0.
    Without a request id it is the prior for requests that have no table of their own yet.
    """

    request_id: str | None
    attained_tokens: tuple[int, ...]
    """Strictly increasing, starts with 0."""
    index_s: tuple[float, ...]
    """Mean of the remaining cost, or its Gittins index, in engine-seconds; lower runs first."""
    growth_tokens: tuple[float, ...]
    """Expected further output tokens within the gate's horizon."""
    cached_tokens: Count = 0
    """Prompt tokens expected in the prefix cache, whose prefill the index at 0 leaves out."""
    targets: Targets | None = None
    """What the engine tries to keep: the request's own targets or those of its class."""
    early_tokens: tuple[int, ...] = ()
    """10% quantile of the output length given that it exceeds each entry's tokens; empty without an end-to-end or a
    TPOT target."""
    late_tokens: tuple[int, ...] = ()
    """90% quantile of the same."""
    tenant: str | None = None
    """Account that the request is charged to; None where no shares are kept."""
    weight: float = 1.0
    """Weight of that account."""

    def entry(self, attained_tokens: int) -> int:
        """Number of the entry that holds at ``attained_tokens``."""
        return bisect_right(self.attained_tokens, attained_tokens) - 1


class Gate(Record, frozen=True, kw_only=True):
    """Admission: start a request only while the free KV blocks cover it and the expected growth."""

    horizon_tokens: int
    """Further output tokens of each request up to which its growth is counted."""
    margin: float = 1.0
    """Factor on the expected growth."""


class Preemption(Record, frozen=True, kw_only=True):
    """A waiting request may push out running ones when its gain exceeds the cost of recomputing them."""

    token_s: float
    """Cost of a computed token that is lost, in the index's engine-seconds."""
    hysteresis: float = 0.0
    """Share of the victim's index by which the other's must be lower, so that two do not alternate for ever."""
    rest_steps: int = 0
    """Steps after a preemption during which no further request is pushed out."""


class StepCost(Record, frozen=True, kw_only=True):
    """Times of an engine's steps, which the controller learns from its snapshots."""

    base_s: float
    """Seconds of a step that computes nothing."""
    prefill_token_s: float
    """Seconds that a prompt token adds."""
    budget_tokens: int
    """Largest number of tokens that the engine computes in a step."""
    decode_seq_s: float = 0.0
    """Seconds that a decoding sequence adds."""
    kv_token_s: float = 0.0
    """Seconds that a KV token, read once, adds."""


class FairShares(Record, frozen=True, kw_only=True):
    """Tenants share the engine by weight; what a request has used is priced in engine-seconds."""

    kv_token_step_s: float
    """Price of a KV token held during one step."""
    slot_step_s: float
    """Price of a running sequence during one step."""
    prefill_token_s: float
    """Price of computing a prompt token."""


class EngineRules(Record, frozen=True, kw_only=True):
    """The rules that an engine applies beside the index tables; by default none, so that the index alone orders."""

    gate: Gate | None = None
    """Admission; None admits as the engine does."""
    boost_per_s: float | None = None
    """γ of the boost; None orders by the index alone."""
    preemption: Preemption | None = None
    """When a waiting request pushes out running ones; None leaves preemption to the engine."""
    victims: Victims = "last"
    """Which running request is preempted when KV memory runs out: the last in the order, the last but never the one that
    arrived first, or the cheapest to recompute."""
    step: StepCost | None = None
    """Times by which a step's prefill is bounded and prefix hits are priced; None until they are learned."""
    shares: FairShares | None = None
    """Weighted fair shares of the tenants; None keeps none."""
    by_arrival: bool = False
    """Whether requests go by arrival and their targets, not by the index: predictions are not trusted."""
    sessions: bool = False
    """Whether a request goes by the arrival of its session's first one while its prefix is cached."""


class Settings(Record, frozen=True, kw_only=True):
    """How the engine applies index tables."""

    revision: int
    """Number of the settings."""
    mode: Mode
    """off, shadow or on."""
    lease_s: float
    """Silence after which the engine falls back to first come, first served."""
    rules: EngineRules


class Heartbeat(Record, frozen=True, kw_only=True):
    """The controller is alive; renews the lease."""

    time_s: float
    read_s: float | None = None
    """Time, by the engine's clock, of the last snapshot that the controller has read; None before the first."""
    settings: Settings
    """The settings in force, repeated because an earlier message may have been lost."""


ControllerMessage: TypeAlias = Welcome | Acknowledged | IndexTable | Settings | Heartbeat

# --- frames ---------------------------------------------------------------------------------------

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()
_engine_decoder: msgspec.msgpack.Decoder[EngineMessage] = msgspec.msgpack.Decoder(EngineMessage)
_controller_decoder: msgspec.msgpack.Decoder[ControllerMessage] = msgspec.msgpack.Decoder(ControllerMessage)


def encode(message: EngineMessage | ControllerMessage) -> bytes:
    """Turn a message into a frame: one byte of protocol version, then msgpack; raises `ProtocolError`."""
    try:
        return bytes((PROTOCOL,)) + _encoder.encode(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{type(message).__name__} has no encoding: {error}") from error


def decode_engine_message(frame: bytes) -> EngineMessage:
    """Read a frame that an engine sent; raises `ProtocolError`."""
    return _decode(frame, _engine_decoder)


def decode_controller_message(frame: bytes) -> ControllerMessage:
    """Read a frame that a controller sent; raises `ProtocolError`."""
    return _decode(frame, _controller_decoder)


def _decode(frame: bytes, decoder: msgspec.msgpack.Decoder[Message]) -> Message:
    if not frame:
        raise ProtocolError("frame is empty: whatever sent it is no engine or controller of ours")
    if frame[0] != PROTOCOL:
        raise ProtocolError(
            f"frame speaks protocol {frame[0]}, this side speaks {PROTOCOL}: run the same release on both sides"
        )
    try:
        return decoder.decode(memoryview(frame)[1:])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"frame of {len(frame)} bytes does not decode: {error}") from error
