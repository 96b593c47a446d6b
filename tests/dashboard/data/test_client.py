from typing import Any

import pytest

from dashboard.data.client import ControllerClient, Trouble
from store.http_api import GainView, QueueView, StateView
from store.http_requests import FinishedView, LatenciesView, LoadView


def trouble(answer: object) -> Trouble:
    assert isinstance(answer, Trouble)
    return answer


def test_every_question_has_a_typed_answer(standing: Any) -> None:
    """Over real HTTP, each answer becomes the value that it promises."""
    client = ControllerClient(standing.url)
    state, queue, gain = client.state(), client.queue("engine-0", 60), client.gain()
    load, latency, finished = client.load(60, 6, {}), client.latency(60, 6, {}), client.finished(60, 5, {})
    client.close()
    assert isinstance(state, StateView)
    assert state.engines[0].snapshot is not None
    assert state.engines[0].snapshot.waiting == 137
    assert isinstance(queue, QueueView)
    assert len(queue.rows) == 60
    assert isinstance(load, LoadView)
    assert isinstance(latency, LatenciesView)
    assert isinstance(finished, FinishedView)
    assert (len(load.points), len(latency.ttlt), len(finished.finished)) == (6, 6, 5)
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


def test_what_cannot_be_told_now_is_trouble_in_the_controllers_words(standing: Any) -> None:
    """While the history cannot be written nothing recent is known; the state is."""
    client = ControllerClient(standing.url)
    standing.world.disk_error = "the recent past is unknown: No space left"
    for answer in (client.load(60.0, 6, {}), client.latency(60.0, 6, {}), client.finished(60.0, 5, {})):
        assert (trouble(answer).kind, trouble(answer).detail) == ("unavailable", standing.world.disk_error)
    assert isinstance(client.state(), StateView)
    standing.world.disk_error = None
    assert isinstance(client.load(60.0, 6, {}), LoadView)
    client.close()
