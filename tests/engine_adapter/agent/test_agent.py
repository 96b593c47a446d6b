from collections.abc import Callable, Iterator
from dataclasses import replace

from msgspec import structs
from scripted_link import HELLO, PRIOR, SETTINGS, VIEW, ScriptedLink, arrived, connected, finished

from engine_adapter.agent.agent import Agent, AgentLimits
from engine_adapter.ordering.kv_memory import PlainMemory
from store.bounds import bounded_request_id
from store.records import (
    Acknowledged,
    Arrived,
    EngineRules,
    Facts,
    Finished,
    FirstToken,
    Goodbye,
    Heartbeat,
    IndexTable,
    Preempted,
    RunningRequest,
    Settings,
    Snapshot,
    Welcome,
    decode_engine_message,
    encode,
)


def test_it_says_hello_until_it_is_welcomed() -> None:
    """Hello is sent at once and then once per interval; nothing else is sent."""
    link = ScriptedLink()
    agent = Agent(hello=HELLO, link=link)
    agent.arrived(arrived("a"))
    for now_s in (0.0, 0.5, 1.0, 1.5):
        agent.poll(now_s)
        agent.report(now_s, VIEW)
    assert link.sent == [HELLO, HELLO]
    assert agent.mode(1.5) == "off"


def test_an_engine_without_steps_reports_once_a_second_and_at_once_when_it_is_welcomed() -> None:
    """Also by a controller that was started anew; before any, and between two beats, there is nothing to send."""
    link = ScriptedLink()
    agent = Agent(hello=HELLO, link=link)
    agent.poll(0.0)
    assert not agent.beat_due(9.0), "nobody has welcomed it"
    due = []
    for tick in range(40):
        now_s = 0.25 * tick
        if tick in {4, 30}:
            link.inbox = [Welcome(controller_id=f"c{tick}", durable_batch=0), SETTINGS]
        agent.poll(now_s)
        if agent.beat_due(now_s):
            agent.report(now_s, VIEW)
            due.append(now_s)
            link.inbox = [SETTINGS]
    assert due == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 7.5, 8.5, 9.5]


def test_facts_are_kept_until_they_are_durable() -> None:
    """A batch without an acknowledgement is resent to the next controller, in order and with its number."""
    agent, link = connected()
    for name in ("a", "b", "c"):
        agent.arrived(arrived(name))
        agent.poll(0.2)
    assert link.facts() == [1, 2, 3]
    link.inbox = [Acknowledged(batch=1)]
    agent.poll(0.3)
    link.sent.clear()
    link.inbox = [Welcome(controller_id="c2", durable_batch=1)]
    agent.poll(0.4)
    again = [message for message in link.sent if isinstance(message, Facts)]
    assert [facts.batch for facts in again] == [2, 3, 4]
    assert [fact.request_id for facts in again for fact in facts.facts] == ["b", "c", "a"]
    resent = again[-1].facts[0]
    assert isinstance(resent, Arrived)
    assert resent.resent, "an unfinished request whose arrival was durable is sent again"


def test_facts_recorded_without_a_controller_are_sent_after_the_welcome() -> None:
    """A controller's outage loses no fact."""
    agent, link = connected()
    agent.arrived(arrived("a"))
    agent.poll(0.2)
    link.inbox = [Acknowledged(batch=1)]
    agent.poll(0.3)
    agent.finished(finished("a"))
    agent.poll(60.0)
    assert agent.fallback(60.0) == "controller silent for more than 2 s"
    assert link.facts() == [1]
    link.inbox = [Welcome(controller_id="c2", durable_batch=1)]
    agent.poll(61.0)
    assert link.facts() == [1, 2]


def test_a_full_link_delays_facts_and_drops_snapshots() -> None:
    """Facts wait for the link, snapshots are dropped and counted in the next one."""
    agent, link = connected()
    link.up = False
    agent.arrived(arrived("a"))
    agent.poll(0.2)
    agent.report(0.2, VIEW)
    link.up = True
    agent.poll(0.3)
    agent.report(0.3, VIEW)
    assert link.facts() == [1]
    snapshots = [message for message in link.sent if isinstance(message, Snapshot)]
    assert [snapshot.messages_dropped for snapshot in snapshots] == [1]


def test_memory_for_facts_is_bounded_and_drops_are_counted() -> None:
    """Beyond the bound the oldest facts are discarded; those that were never sent count as dropped."""
    agent, link = connected(AgentLimits(retained_facts=10, facts_per_batch=2))
    link.up = False
    for number in range(24):
        agent.arrived(arrived(str(number)))
    agent.poll(0.2)
    link.up = True
    agent.poll(0.3)
    agent.report(0.3, VIEW)
    for number in range(24, 48):
        agent.arrived(arrived(str(number)))
    agent.poll(0.4)
    agent.report(0.4, VIEW)
    snapshots = [message for message in link.sent if isinstance(message, Snapshot)]
    assert [snapshot.messages_dropped for snapshot in snapshots] == [14, 14]
    assert len(link.facts()) == 5 + 12


def test_an_arrival_goes_out_at_once_and_takes_along_what_waits() -> None:
    """The end of a request waits for the next arrival or a tenth of a second, unless the engine falls idle."""
    agent, link = connected()
    for name in ("a", "b", "c"):
        agent.arrived(arrived(name))
    agent.poll(0.20)
    agent.finished(finished("a"))
    agent.poll(0.25)
    assert link.facts() == [1]
    agent.arrived(arrived("d"))
    agent.poll(0.26)
    batches = [message for message in link.sent if isinstance(message, Facts)]
    assert [(type(fact), fact.request_id) for fact in batches[-1].facts] == [(Finished, "a"), (Arrived, "d")]
    agent.finished(finished("b"))
    agent.poll(0.30)
    assert link.facts() == [1, 2]
    agent.poll(0.36)
    assert link.facts() == [1, 2, 3]
    for name in ("c", "d"):
        agent.finished(finished(name))
    agent.poll(0.37)
    assert link.facts() == [1, 2, 3, 4], "an idle engine may not poll again"


def test_every_third_snapshot_names_the_requests() -> None:
    """The others hold only the numbers, and never iterate the lists."""
    agent, link = connected()
    looked = []

    def names() -> Iterator[str]:
        looked.append(True)
        yield "a"

    for step in range(7):
        agent.report(0.2 + 0.1 * step, replace(VIEW, queue=names()))
    snapshots = [message for message in link.sent if isinstance(message, Snapshot)]
    assert [snapshot.detailed for snapshot in snapshots] == [True, False, False, True, False, False, True]
    assert [snapshot.queue for snapshot in snapshots if snapshot.detailed] == [("a",)] * 3
    assert all(not snapshot.queue for snapshot in snapshots if not snapshot.detailed)
    assert len(looked) == 3


def test_silence_beyond_the_lease_means_first_come_first_served_until_a_message_comes() -> None:
    """The fallback starts and ends by itself and names its reason."""
    agent, link = connected()
    agent.poll(2.0)
    assert agent.mode(2.0) == "on"
    agent.poll(2.2)
    assert agent.mode(2.2) == "off"
    assert agent.plan(2.2, waiting=[], running=[], memory=PlainMemory(0, 16)) is None
    link.inbox = [Heartbeat(time_s=2.3, settings=SETTINGS)]
    agent.poll(2.3)
    assert agent.mode(2.3) == "on"


def test_a_policy_error_pauses_the_policy_which_then_recovers() -> None:
    """An error discards the tables; after a new welcome the order is back when the pause ends."""
    agent, link = connected()
    agent.failed(1.0, ValueError("index is nan"))
    assert agent.fallback(1.0) == "ValueError: index is nan"
    agent.poll(1.1)
    assert link.sent[-1] == HELLO
    link.inbox = [Welcome(controller_id="c", durable_batch=0), SETTINGS, PRIOR]
    agent.poll(1.2)
    assert agent.mode(1.5) == "off", "the pause lasts its second"
    assert agent.mode(2.1) == "on"


def test_repeated_errors_pause_for_longer() -> None:
    """The pause doubles with each error after it, not with those within it, and is short again after a minute without."""
    agent, _ = connected()
    pauses, now_s = [], 0.0
    for _ in range(9):
        agent.failed(now_s, ValueError("bad"))
        agent.failed(now_s, ValueError("bad"))
        until_s = _until(lambda later_s: agent.fallback(later_s) != "ValueError: bad", now_s)
        pauses.append(until_s - now_s)
        now_s = float(until_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    now_s += 61.0
    agent.failed(now_s, ValueError("bad"))
    assert _until(lambda later_s: agent.fallback(later_s) != "ValueError: bad", now_s) == now_s + 1


def _until(over: Callable[[float], bool], since_s: float = 0.0) -> int:
    return next(second for second in range(int(since_s), 1000) if over(float(second)))


def test_shadow_changes_nothing() -> None:
    """In shadow mode there is no plan, and the snapshot says which mode is in force."""
    agent, link = connected()
    link.inbox = [Settings(revision=2, mode="shadow", lease_s=2.0, rules=EngineRules())]
    agent.poll(0.2)
    assert agent.mode(0.2) == "shadow"
    assert agent.plan(0.2, waiting=[], running=[], memory=PlainMemory(0, 16)) is None


def test_closing_sends_what_is_left() -> None:
    """The last facts and a goodbye leave before the link closes."""
    agent, link = connected()
    agent.arrived(arrived("a"))
    agent.close(1.0)
    assert isinstance(link.sent[-2], Facts)
    assert link.sent[-1] == Goodbye(time_s=1.0)
    assert not link.up


def test_facts_that_nobody_acknowledges_are_sent_again() -> None:
    """A frame may be lost unnoticed: retained batches are resent, at growing intervals."""
    agent, link = connected(AgentLimits(resend_s=5.0, resend_limit_s=10.0))
    agent.arrived(arrived("a"))
    sent_s = []
    for second in range(60):
        link.inbox = [Heartbeat(time_s=0.0, settings=SETTINGS)]
        before = len(link.facts())
        agent.poll(float(second))
        sent_s += [second] * (len(link.facts()) - before)
    assert sent_s == [0, 5, 15, 25, 35, 45, 55]
    link.inbox = [Acknowledged(batch=1)]
    agent.poll(60.0)
    assert agent.unacknowledged == 0
    agent.arrived(arrived("b"))
    link.inbox = [Heartbeat(time_s=0.0, settings=SETTINGS)]
    agent.poll(61.0)
    assert link.facts()[-1] == 2


def test_a_batch_names_the_oldest_retained_one() -> None:
    """A controller can distinguish a missing batch that will be resent from one that was dropped."""
    agent, link = connected(AgentLimits(retained_facts=2, facts_per_batch=1))
    for name in ("a", "b", "c"):
        agent.arrived(arrived(name))
        agent.poll(0.2)
    link.up = False
    agent.arrived(arrived("d"))
    agent.poll(0.3)
    link.up = True
    agent.poll(0.4)
    assert [(m.batch, m.oldest) for m in link.sent if isinstance(m, Facts)] == [(1, 1), (2, 1), (3, 1), (4, 3)]


def test_it_says_hello_until_it_knows_settings_and_prior() -> None:
    """A welcome alone is not enough: messages lost after it are requested again."""
    link = ScriptedLink()
    agent = Agent(hello=HELLO, link=link)
    agent.poll(0.0)
    link.inbox = [Welcome(controller_id="c", durable_batch=0)]
    agent.poll(0.5)
    link.inbox = [SETTINGS]
    agent.poll(1.0)
    assert link.sent == [HELLO, HELLO]
    link.inbox = [PRIOR]
    agent.poll(2.0)
    assert link.sent == [HELLO, HELLO]
    assert agent.mode(2.0) == "on"


def test_a_heartbeat_repeats_the_settings() -> None:
    """Settings that were lost on their way are in force with the next heartbeat."""
    agent, link = connected()
    shadow = Settings(revision=2, mode="shadow", lease_s=2.0, rules=EngineRules())
    link.inbox = [Heartbeat(time_s=0.0, settings=shadow)]
    agent.poll(0.2)
    assert agent.mode(0.2) == "shadow"


def test_a_long_name_is_cut_for_the_controller_and_whole_in_the_engine() -> None:
    """In every fact and snapshot it is the same bounded id, and the table that comes back for it finds the request."""
    agent, link = connected()
    whole = f"cmpl-{10_000 * 'x'}-0-1a2b3c4d"
    bounded = bounded_request_id(whole)
    assert len(bounded) < 300
    agent.arrived(structs.replace(arrived(whole), tenant=10_000 * "t", lora="l\x1b"))
    agent.poll(0.2)
    link.inbox = [IndexTable(request_id=bounded, attained_tokens=(0,), index_s=(7.0,), growth_tokens=(1.0,))]
    agent.poll(0.3)
    running = RunningRequest(whole, 3, 1)
    agent.report(0.3, replace(VIEW, queue=(whole, "other"), running_requests=(running,)))
    snapshot = next(message for message in link.sent if isinstance(message, Snapshot))
    assert (snapshot.tables_applied, snapshot.tables_held, snapshot.names_cut) == (1, 1, 3)
    assert snapshot.queue == (bounded, "other")
    assert [request.request_id for request in snapshot.running_requests] == [bounded]
    agent.first_token(FirstToken(request_id=whole, time_s=1.0, scheduled_s=1.0, cached_prompt_tokens=0))
    agent.preempted(Preempted(request_id=whole, time_s=1.0, lost_tokens=1, attained_tokens=1))
    link.inbox = [Welcome(controller_id="another", durable_batch=1)]
    agent.poll(0.4)
    agent.finished(finished(whole))
    agent.poll(0.5)
    facts = [fact for message in link.sent if isinstance(message, Facts) for fact in message.facts]
    assert {fact.request_id for fact in facts} == {bounded}
    assert [type(fact) for fact in facts] == [Arrived, FirstToken, Preempted, Arrived, Finished]
    assert len(encode(Facts(batch=1, facts=tuple(facts), oldest=1))) < 5000
    assert not agent._names._bounded
    assert not agent._names._whole


def test_the_reason_of_a_fallback_is_short_and_can_be_encoded() -> None:
    """Whatever an exception says: one of a request's id may say all of it."""
    agent, link = connected()
    agent.failed(1.0, KeyError(100_000 * "x" + "\ud800"))
    agent.failed(1.0, KeyError("\x1b\ud800"))
    agent.report(1.1, VIEW)
    (snapshot,) = [message for message in link.sent if isinstance(message, Snapshot)]
    assert snapshot.fallback is not None
    assert len(snapshot.fallback) <= 300
    assert decode_engine_message(encode(snapshot)) == snapshot
