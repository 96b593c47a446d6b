"""Shared parts of the engines in virtual time: end of an answer, load of a step, progress of each request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from engine_adapter.agent.step_times import inter_token_times
from engine_adapter.virtual_time.engine import CompletedRequest, TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from store.bounds import packed_tokens
from store.errors import ConfigError, WorkloadError
from store.records import Arrived, Finished, FinishReason, FirstToken


def check_profile(profile: Profile) -> None:
    """Raise `ConfigError` for a profile whose KV cache cannot hold one request of full length, as vLLM does."""
    if profile.kv_tokens < profile.max_model_len_tokens:
        raise ConfigError(
            f"profile {profile.name!r}: {profile.kv_tokens} KV tokens cannot hold one request of "
            f"{profile.max_model_len_tokens} tokens: lower max_model_len_tokens or raise kv_tokens"
        )


def check_request(request: TraceRequest, profile: Profile) -> None:
    """Raise `WorkloadError` for a request that vLLM's front end would refuse."""
    prompt_tokens = len(request.token_ids)
    if not 0 < prompt_tokens < profile.max_model_len_tokens:
        raise WorkloadError(
            f"request {request.request_id!r} has a prompt of {prompt_tokens} tokens: profile {profile.name!r} "
            f"takes 1 to {profile.max_model_len_tokens - 1}"
        )
    if request.max_tokens < 1 or request.true_output_tokens < 1:
        raise WorkloadError(
            f"request {request.request_id!r} has max_tokens={request.max_tokens} and "
            f"true_output_tokens={request.true_output_tokens}: both must be at least 1"
        )


def ending(request: TraceRequest, output_tokens: int, profile: Profile) -> FinishReason | None:
    """Return why the request ends after ``output_tokens`` tokens; None when it continues.

    The end-of-sequence token takes precedence over the cut, and both over the client's disconnecting.
    """
    if output_tokens >= request.true_output_tokens:
        return "stop"
    if output_tokens >= request.max_tokens or len(request.token_ids) + output_tokens >= profile.max_model_len_tokens:
        return "length"
    if request.abort_after_tokens is not None and output_tokens >= request.abort_after_tokens:
        return "abort"
    return None


class Computed(Protocol):
    """A request after a step's tokens are counted as computed and before its new token is added."""

    num_computed_tokens: int
    num_prompt_tokens: int

    @property
    def num_tokens(self) -> int:
        """Prompt tokens plus output tokens generated."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """Tokens and sequences that a step computes."""

    prefill_tokens: int
    decode_seqs: int
    kv_tokens: int

    def duration_s(self, profile: Profile) -> float:
        """Return the step's duration in seconds."""
        return profile.step_s(
            prefill_tokens=self.prefill_tokens, decode_seqs=self.decode_seqs, kv_tokens=self.kv_tokens
        )


def load_of(scheduled: Iterable[tuple[Computed, int]]) -> Load:
    """Sum the load of a step.

    A sequence decodes when its one token is its newest output token; all other tokens are prefill, including
    those recomputed after a preemption.
    Attention reads the KV of all tokens that a scheduled request has computed, those of this step included.
    """
    prefill_tokens = decode_seqs = kv_tokens = 0
    for request, tokens in scheduled:
        computed = request.num_computed_tokens
        kv_tokens += computed
        if tokens == 1 and computed > request.num_prompt_tokens and computed == request.num_tokens:
            decode_seqs += 1
        else:
            prefill_tokens += tokens
    return Load(prefill_tokens, decode_seqs, kv_tokens)


@dataclass(slots=True)
class RequestProgress:
    """Progress of an unfinished request."""

    request: TraceRequest
    scheduled_s: float | None = None
    first_token_s: float | None = None
    output_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    cached_prompt_tokens: int = 0
    expected_cached_tokens: int | None = None
    lost_tokens: int = 0
    """Computed tokens lost since it was last scheduled."""

    generated_s: list[float] = field(default_factory=list)
    """When each output token was generated."""

    def arrived(self) -> Arrived:
        """Return the fact of its arrival."""
        request = self.request
        return Arrived(
            request_id=request.request_id,
            arrival_s=request.arrival_s,
            prompt_tokens=len(request.token_ids),
            token_ids=packed_tokens(request.token_ids),
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            priority=request.priority,
            tenant=request.tenant,
            session=request.session,
            service_class=request.service_class,
            targets=request.targets,
            sheds=request.sheds,
            expected_output_tokens=request.expected_output_tokens,
            attained_tokens=self.output_tokens,
        )

    def start(self, now_s: float, *, cached_tokens: int = 0, expected_tokens: int | None = None) -> None:
        """Record that it is scheduled, first or again, with the tokens found and expected in the prefix cache."""
        if self.scheduled_s is None:
            self.scheduled_s = now_s
            self.cached_prompt_tokens = cached_tokens
            self.expected_cached_tokens = expected_tokens
        self.recomputed_tokens -= min(cached_tokens, self.lost_tokens)
        self.lost_tokens = 0

    def preempt(self, lost_tokens: int) -> None:
        """Record a preemption that discards ``lost_tokens`` computed tokens."""
        self.preemptions += 1
        self.recomputed_tokens += lost_tokens
        self.lost_tokens = lost_tokens

    def count(self) -> int:
        """Return its output tokens."""
        return self.output_tokens

    def generate(self, now_s: float) -> None:
        """Record an output token."""
        self.output_tokens += 1
        self.generated_s.append(now_s)
        if self.first_token_s is None:
            self.first_token_s = now_s

    def first_token(self) -> FirstToken:
        """Return the fact of its first token."""
        assert self.first_token_s is not None
        assert self.scheduled_s is not None
        return FirstToken(
            request_id=self.request.request_id,
            time_s=self.first_token_s,
            scheduled_s=self.scheduled_s,
            cached_prompt_tokens=self.cached_prompt_tokens,
        )

    def finished(self, now_s: float, reason: FinishReason, *, shed: str | None = None) -> Finished:
        """Return the fact of its end."""
        times = inter_token_times(self.generated_s)
        return Finished(
            request_id=self.request.request_id,
            time_s=now_s,
            reason=reason,
            arrival_s=self.request.arrival_s,
            prompt_tokens=len(self.request.token_ids),
            output_tokens=self.output_tokens,
            max_tokens=self.request.max_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            preemptions=self.preemptions,
            recomputed_tokens=self.recomputed_tokens,
            scheduled_s=self.scheduled_s,
            first_token_s=self.first_token_s,
            expected_cached_tokens=self.expected_cached_tokens,
            itl_max_s=None if times is None else times.max_s,
            itl_p99_s=None if times is None else times.p99_s,
            shed=shed,
        )

    def completed(self, now_s: float, reason: FinishReason) -> CompletedRequest:
        """Return the completed request; times that an abort prevented equal its end."""
        times = inter_token_times(self.generated_s)
        return CompletedRequest(
            request_id=self.request.request_id,
            arrival_s=self.request.arrival_s,
            scheduled_s=now_s if self.scheduled_s is None else self.scheduled_s,
            first_token_s=now_s if self.first_token_s is None else self.first_token_s,
            finished_s=now_s,
            prompt_tokens=len(self.request.token_ids),
            output_tokens=self.output_tokens,
            reason=reason,
            preemptions=self.preemptions,
            recomputed_tokens=self.recomputed_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            itl_max_s=None if times is None else times.max_s,
            itl_p99_s=None if times is None else times.p99_s,
        )
