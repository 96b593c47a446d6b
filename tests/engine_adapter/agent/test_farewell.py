"""An engine that leaves hands over what is not acknowledged, and waits no longer than it may."""

from collections.abc import Callable

from scripted_link import HELLO, PRIOR, SETTINGS, arrived, connected, finished

from engine_adapter.agent.farewell import hand_over
from store.records import (
    Acknowledged,
    Arrived,
    Facts,
    Finished,
    Heartbeat,
    Welcome,
)


class Time:
    """A clock that goes on only while somebody sleeps, and a controller that answers meanwhile."""

    def __init__(self, answer: Callable[[float], None]) -> None:
        self.now_s = 100.0
        self._answer = answer

    def clock(self) -> float:
        return self.now_s

    def sleep(self, span_s: float) -> None:
        self.now_s += span_s
        self._answer(self.now_s)


def test_a_farewell_greets_a_controller_that_was_silent_and_waits_until_all_is_durable() -> None:
    """What was answered during its silence is acknowledged before the engine leaves."""
    agent, link = connected()
    agent.arrived(arrived("a"))
    agent.finished(finished("a"))
    agent.poll(100.0)
    link.sent.clear()

    def answer(now_s: float) -> None:
        if now_s > 100.3 and link.sent == [HELLO]:
            link.inbox = [Welcome(controller_id="c", durable_batch=0), Heartbeat(time_s=now_s, settings=SETTINGS)]
        if now_s > 100.6 and link.facts():
            link.inbox = [Acknowledged(batch=max(link.facts()))]

    time = Time(answer)
    hand_over(agent, clock=time.clock, sleep=time.sleep, wait_s=1.5)
    assert link.sent[0] == HELLO
    assert {type(fact) for message in link.sent if isinstance(message, Facts) for fact in message.facts} == {
        Arrived,
        Finished,
    }
    assert agent.unacknowledged == 0
    assert time.now_s < 100.7


def test_a_farewell_ends_when_nobody_answers() -> None:
    """After its time, and at once where there is nothing to hand over."""
    agent, link = connected()
    time = Time(lambda _now_s: None)
    hand_over(agent, clock=time.clock, sleep=time.sleep, wait_s=1.5)
    assert time.now_s == 100.0
    agent.arrived(arrived("a"))
    hand_over(agent, clock=time.clock, sleep=time.sleep, wait_s=1.5)
    assert 101.4 <= time.now_s < 101.6
    hand_over(agent, clock=lambda: 200.0, sleep=lambda _s: None, wait_s=1.5)
    assert agent.unacknowledged == 1, "nor does one whose clock stands wait for ever"
    assert link.up


def test_a_farewell_finds_a_controller_that_is_another_one() -> None:
    """It came within the lease, so that the engine still counts as welcomed, and acknowledges nothing before a hello."""
    agent, link = connected()
    agent.arrived(arrived("a"))
    agent.finished(finished("a"))
    agent.poll(0.2)

    def answer(_now_s: float) -> None:
        if link.sent[-1] == HELLO:
            link.inbox = [Welcome(controller_id="another", durable_batch=0), SETTINGS, PRIOR]
        elif HELLO in link.sent[2:] and link.facts():
            link.inbox = [Acknowledged(batch=max(link.facts()))]

    time = Time(answer)
    time.now_s = 0.3
    hand_over(agent, clock=time.clock, sleep=time.sleep, wait_s=1.5)
    assert agent.unacknowledged == 0
    assert time.now_s < 1.3


def test_a_farewell_to_a_busy_controller_is_no_new_greeting() -> None:
    """It is heard, and acknowledges late: it would take a hello for an engine that had lost its connection."""
    agent, link = connected()
    agent.arrived(arrived("a"))
    agent.poll(0.2)
    link.sent.clear()

    def answer(now_s: float) -> None:
        link.inbox = [Heartbeat(time_s=now_s, settings=SETTINGS)]
        if now_s > 1.6:
            link.inbox.append(Acknowledged(batch=max(link.facts())))

    time = Time(answer)
    time.now_s = 0.4
    hand_over(agent, clock=time.clock, sleep=time.sleep, wait_s=1.5)
    assert agent.unacknowledged == 0
    assert HELLO not in link.sent
