import time
from typing import Any

import pytest

from dashboard.data.client import ControllerClient, Trouble
from dashboard.data.recent import KEPT_S, RecentPast
from store.http_api import GainView, QueueView, RecentView, StateView


def trouble(answer: object) -> Trouble:
    assert isinstance(answer, Trouble)
    return answer


def test_every_question_has_a_typed_answer(standing: Any) -> None:
    """Over real HTTP, each answer becomes the value that it promises."""
    client = ControllerClient(standing.url)
    state, queue, recent, gain = client.state(), client.queue("engine-0", 60), client.recent(30), client.gain()
    client.close()
    assert isinstance(state, StateView)
    assert state.engines[0].snapshot is not None
    assert state.engines[0].snapshot.waiting == 137
    assert isinstance(queue, QueueView)
    assert len(queue.rows) == 60
    assert isinstance(recent, RecentView)
    assert len(recent.snapshots) == 150
    assert isinstance(gain, GainView)
    assert gain.gain is not None
    assert gain.gain.requests == 1200


@pytest.mark.parametrize(("path", "kind"), [("/locked", "refused"), ("/nowhere", "failed"), ("/bad", "garbled")])
def test_a_wrong_answer_is_a_value(standing: Any, path: str, kind: str) -> None:
    """A status, or what is no JSON of ours, raises nothing."""
    client = ControllerClient(standing.url + path)
    assert trouble(client.state()).kind == kind
    client.close()


def test_an_answer_of_another_release_is_told_by_the_field_that_is_missing(standing: Any) -> None:
    """Nothing is made up for it."""
    client = ControllerClient(standing.url + "/old")
    told = trouble(client.state())
    client.close()
    assert told.kind == "garbled"
    assert "missing required field `backlog` - at `$.learner`" in told.detail


def test_silence_is_a_value(standing: Any) -> None:
    """A server that takes too long counts as slow, one that is gone as down, a broken address too."""
    slow, nonsense = ControllerClient(standing.url + "/slow", timeout_s=0.2), ControllerClient("nonsense")
    client = ControllerClient(standing.url)
    assert trouble(slow.state()).kind == "slow"
    assert trouble(nonsense.state()).kind == "down"
    standing.stop()
    assert trouble(client.state()).kind == "down"
    standing.start()
    assert isinstance(client.state(), StateView)
    for one in (slow, nonsense, client):
        one.close()


class AskedFor(ControllerClient):
    """Notes for how many seconds the recent past was asked."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.windows_s: list[float] = []

    def recent(self, window_s: float) -> RecentView | Trouble:
        self.windows_s.append(window_s)
        return super().recent(window_s)


def test_the_recent_past_is_asked_for_whole_once_and_then_in_short_pieces(standing: Any) -> None:
    """Later questions cover the time since the last one; a new controller starts from the whole again."""
    clock_s = [100.0]
    client = AskedFor(standing.url)
    past = RecentPast(client, lambda: clock_s[0])
    first = past.read("c", time.time(), 60.0)
    clock_s[0] += 1.0
    second = past.read("c", time.time(), 60.0)
    past.read("c", time.time(), 60.0)
    past.read("d", time.time(), 60.0)
    client.close()
    assert isinstance(first, RecentView)
    assert isinstance(second, RecentView)
    assert client.windows_s[0] == KEPT_S
    assert client.windows_s[1] < 10
    assert client.windows_s[2:] == [KEPT_S]
    times_s = [point.time_s for point in second.snapshots]
    assert times_s == sorted(set(times_s))
    assert 298 <= len(times_s) <= 301


def test_a_recent_past_without_a_controller_is_trouble_and_heals(standing: Any) -> None:
    """Trouble passes through, and what was kept is still there afterwards."""
    clock_s = [0.0]
    client = ControllerClient(standing.url)
    past = RecentPast(client, lambda: clock_s[0])
    assert isinstance(past.read("c", time.time(), 60.0), RecentView)
    standing.stop()
    clock_s[0] = 2.0
    assert trouble(past.read("c", time.time(), 60.0)).kind == "down"
    standing.start()
    again = past.read("c", time.time(), 60.0)
    client.close()
    assert isinstance(again, RecentView)
    assert len(again.snapshots) >= 290
