from __future__ import annotations

from pathlib import Path

import msgspec

from engine_adapter.serving.vllm_bench_client import TraceLine, trace_lines, write_trace
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES

PROFILE = PROFILES["h800-qwen3-32b-24k"]


def test_a_trace_asks_for_no_more_than_the_context_has_room_for(tmp_path: Path) -> None:
    """VLLM refuses a request whose prompt and limit exceed its context; everything else is written as it is, and time begins with the first."""
    long = TraceRequest(
        request_id="long", arrival_s=1.5, token_ids=(7,) * 16_000, max_tokens=8192, true_output_tokens=50, tenant="t"
    )
    short = TraceRequest(request_id="short", arrival_s=2.0, token_ids=(1, 2), max_tokens=10, true_output_tokens=50)
    write_trace(trace_lines([long, short], PROFILE), tmp_path / "trace")
    lines = (tmp_path / "trace").read_bytes().splitlines()
    first, second = (msgspec.json.decode(line, type=TraceLine) for line in lines)
    assert first.max_tokens == PROFILE.max_model_len_tokens - 16_000
    assert (first.token_ids, first.arrival_s, first.true_output_tokens, first.tenant) == (long.token_ids, 0.0, 50, "t")
    assert (second.max_tokens, second.arrival_s, second.tenant) == (10, 0.5, None)
