"""What a demo does beside watching its processes: it switches on, says when the machine is too slow, keeps the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from controller.api.client import ApiClient
from store.formatting import span

SWITCH_REASON = "the demo has shown first come, first served; from here on SageSched orders"
GAIN_INTERVAL_S = 10.0


@dataclass(slots=True, kw_only=True)
class Story:
    """The course of a demo; `step` is called about every second.

    Args:
        client: The controller.
        engine_log: What the engine writes.
        say: Prints a line.
        switch_s: When the mode becomes ``on``; None if it is already.
    """

    client: ApiClient
    engine_log: Path
    say: Callable[[str], None]
    switch_s: float | None
    switched_s: float | None = None
    gain: dict[str, Any] | None = None
    """The latest comparison of what was served in mode on."""
    _next_gain_s: float = 0.0
    _read_bytes: int = field(default=0)

    def step(self, now_s: float) -> None:
        """Do what is due."""
        if self.switch_s is not None and now_s >= self.switch_s:
            self.client.set_mode("on", SWITCH_REASON, "demo")
            self.switch_s, self.switched_s = None, now_s
            self.say("mode       on: until here first come, first served, from here on in SageSched's order")
        for lowered in self._lowered():
            self.say(
                f"speed      this machine is too slow for {lowered['speed']:.3g} times real time: "
                f"lowered to {lowered['lowered_to']:.3g}"
            )
        if now_s >= self._next_gain_s:
            self._next_gain_s = now_s + GAIN_INTERVAL_S
            answer = self.client.get("/api/gain")
            if answer["status"] == "ready" and answer["gain"]["reproduction"]["mode"] == "on":
                self.gain = answer["gain"]

    def _lowered(self) -> Iterator[dict[str, float]]:
        """What the engine has said of its speed since it was last asked."""
        try:
            with self.engine_log.open("rb") as file:
                file.seek(self._read_bytes)
                written = file.read()
        except OSError:
            return
        whole = written[: written.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            if line.startswith(b'{"speed"') and b'"lowered_to"' in line:
                yield msgspec.json.decode(line)


def told(summary: Mapping[str, Any]) -> Iterator[str]:
    """The figures of a demo, as lines.

    >>> gain = {"requests": 700, "fcfs": {"mean_ttlt_s": 14.0}, "modelled": {"mean_ttlt_s": 3.5}, "ratio": {"mean": 0.25},
    ...     "reproduction": {"mean_ttlt_error": 0.02}}
    >>> print(*told({"before_s": 9.0, "after_s": 3.6, "gain": gain}), sep=chr(10))
    measured   mean E2E latency 9 s first come, first served, then 3.6 s in SageSched's order, of other requests
    compared   the same 700 requests: 14 s first come, first served, 3.5 s in SageSched's order (4.0 times faster); replayed, off by +2%
    """
    before_s, after_s, gain = summary["before_s"], summary["after_s"], summary["gain"]
    if before_s is not None and after_s is not None:
        yield (
            f"measured   mean E2E latency {span(before_s)} first come, first served, "
            f"then {span(after_s)} in SageSched's order, of other requests"
        )
    if gain is not None:
        fcfs_s, ours_s = gain["fcfs"]["mean_ttlt_s"], gain["modelled"]["mean_ttlt_s"]
        yield (
            f"compared   the same {gain['requests']:,} requests: {span(fcfs_s)} first come, first served, "
            f"{span(ours_s)} in SageSched's order ({_times(gain['ratio']['mean'])}); "
            f"replayed, off by {gain['reproduction']['mean_ttlt_error']:+.0%}"
        )


def _times(ratio: float) -> str:
    return f"{1 / ratio:.1f} times faster" if ratio < 1.0 else f"{ratio:.1f} times as long"
