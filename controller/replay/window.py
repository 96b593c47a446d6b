"""What the window of a replay begins and ends with: answers under way at its start, and those that outlast its end."""

from __future__ import annotations

from dataclasses import replace

from controller.replay.recorded_run import RecordedRequest
from engine_adapter.virtual_time.engine import CompletedRequest


def attained_at(request: RecordedRequest, time_s: float) -> int:
    """Output tokens that a request had at a time, as if they had come evenly; those known if it has not ended.

    >>> request = RecordedRequest(request_id="a", arrival_s=0.0, prompt_tokens=9, output_tokens=101, max_tokens=200,
    ...     first_token_s=10.0, finished_s=20.0)
    >>> [attained_at(request, time_s) for time_s in (5.0, 10.0, 15.0, 20.0)]
    [0, 1, 51, 100]
    """
    begun_s, more_tokens = request.first_token_s, request.output_tokens - 1
    if begun_s is None or time_s < begun_s or more_tokens < 1:
        return 0
    if request.finished_s is None:
        return request.output_tokens
    share = (time_s - begun_s) / max(request.finished_s - begun_s, 1e-9)
    return min(more_tokens, 1 + int(share * more_tokens))


def cut_at(request: CompletedRequest, time_s: float) -> CompletedRequest:
    """The request as it was seen at a time: one that ended later counts with its time until then.

    >>> request = RecordedRequest(request_id="a", arrival_s=0.0, prompt_tokens=9, output_tokens=101, max_tokens=200,
    ...     first_token_s=10.0, finished_s=20.0).completed()
    >>> seen = cut_at(request, 15.0)
    >>> seen.ttlt_s, seen.ttft_s, seen.output_tokens
    (15.0, 10.0, 51)
    """
    if request.finished_s <= time_s:
        return request
    first_token_s = min(request.first_token_s, time_s)
    share = (time_s - first_token_s) / (request.finished_s - first_token_s)
    return replace(
        request,
        scheduled_s=min(request.scheduled_s, time_s),
        first_token_s=first_token_s,
        finished_s=time_s,
        output_tokens=max(1, 1 + int(share * (request.output_tokens - 1))),
    )
