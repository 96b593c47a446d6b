"""Engines on other machines: who is let in over TCP, who is not, and that no secret is shown."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from msgspec import structs

from controller.cli.main import run
from engine_adapter import engine_key
from engine_adapter.transport.authorized_engines import AuthorizedEngines, authorize, read_authorized, revoke
from engine_adapter.transport.keys import (
    EngineKey,
    create_controller_keys,
    create_engine_key,
    load_controller_keys,
    load_engine_key,
)
from engine_adapter.transport.zmq_sockets import ZmqHub, ZmqLink
from store.errors import ConfigError
from store.records import Acknowledged, Goodbye, Hello, encode

HELLO = Hello(
    engine_id="gpu-1",
    session_id="s1",
    model="m",
    engine="simulated",
    engine_version="1",
    kv_blocks=100,
    block_size_tokens=16,
    max_num_seqs=8,
    token_budget=100,
    max_model_len_tokens=100,
    prefix_caching=False,
    started_s=1.0,
)


class Site:
    """A controller's keys and its endpoint on this machine, and engines that try to connect."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        self.public = create_controller_keys(self.keys).public
        self.hub = ZmqHub("tcp://127.0.0.1:0", self.keys)
        self._closing: list[Callable[[], None]] = [self.hub.close]

    def engine(self, engine_id: str, *, authorized: bool = True) -> EngineKey:
        key = create_engine_key(engine_id, self.public)
        if authorized:
            authorize(self.keys, engine_id, key.pair.public)
        return key

    def link(self, key: EngineKey) -> ZmqLink:
        link = ZmqLink(self.hub.endpoint, key)
        self._closing.insert(0, link.close)
        return link

    def bare(self, **options: bytes) -> zmq.Socket[bytes]:
        """A caller that is no engine of ours, with CURVE options of its own or none."""
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        for name, value in options.items():
            setattr(socket, name, value)
        socket.connect(self.hub.endpoint)
        self._closing.insert(0, context.term)
        self._closing.insert(0, lambda: socket.close(linger=0))
        return socket

    def heard(self, link: ZmqLink, message: Hello | Goodbye = HELLO, *, wait_s: float = 15.0) -> bytes | None:
        """The connection over which a message came, sent until then."""
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s:
            link.send(message)
            for connection, received in self.hub.receive(0.05):
                assert received == message
                return connection
        return None

    def until(self, happens: Callable[[], bool], *, link: ZmqLink | None = None) -> None:
        """Turn until it happens; nothing may be heard meanwhile."""
        until_s = time.monotonic() + 15.0
        while not happens():
            assert time.monotonic() < until_s
            if link is not None:
                link.send(HELLO)
            assert self.hub.receive(0.05) == []

    def close(self) -> None:
        for close in self._closing:
            close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def test_an_authorized_engine_is_heard_and_answered(site: Site) -> None:
    """Both ways, encrypted, over a connection whose address begins with the engine's key."""
    key = site.engine("gpu-1")
    link = site.link(key)
    connection = site.heard(link)
    assert connection is not None
    assert connection.startswith(key.pair.public.encode())
    assert site.hub.send(connection, Acknowledged(batch=2)) == "sent"
    until_s = time.monotonic() + 15.0
    while not (received := link.receive()):
        assert time.monotonic() < until_s
    assert received == [Acknowledged(batch=2)]
    assert set(site.hub.refused.values()) == {0}


def test_an_engine_without_a_key_does_not_even_start() -> None:
    """``tcp://`` without keys is refused on both sides, before anything is sent."""
    with pytest.raises(ConfigError, match="name this engine's key file"):
        ZmqLink("tcp://127.0.0.1:1")
    with pytest.raises(ConfigError, match="name the folder of keys"):
        ZmqHub("tcp://127.0.0.1:0")


def test_a_caller_without_a_key_is_refused(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Plain ZeroMQ is not spoken: counted, logged once, nothing heard."""
    for _ in range(2):
        site.bare().send(encode(HELLO))
    site.until(lambda: site.hub.refused["handshake"] >= 2)
    assert len([line for line in caplog.messages if "without a CURVE key" in line]) == 1


def test_an_engine_that_trusts_another_controller_is_refused(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """It could not read our answers: its handshake fails, and both sides say so."""
    key = site.engine("gpu-1")
    link = site.link(replace(key, controller=create_engine_key("x", site.public).pair.public))
    site.until(lambda: site.hub.refused["handshake"] >= 1, link=link)
    site.until(lambda: any("ends the handshake" in line for line in caplog.messages), link=link)


def test_a_key_that_nobody_authorized_is_refused_until_somebody_does(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the public key and the command; after the command the engine gets in by itself."""
    key = site.engine("gpu-1", authorized=False)
    link = site.link(key)
    site.until(lambda: site.hub.refused["key"] >= 1, link=link)
    [line] = [line for line in caplog.messages if "is not authorized" in line and "refused" in line]
    assert key.pair.public in line
    assert "sagesched keys authorize" in line
    authorize(site.keys, "gpu-1", key.pair.public)
    assert site.heard(link) is not None


def test_a_revoked_engine_is_neither_heard_nor_answered(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """At once on the open connection, and a new connection is refused."""
    key = site.engine("gpu-1")
    link = site.link(key)
    connection = site.heard(link)
    assert connection is not None
    revoke(site.keys, "gpu-1")
    site.until(lambda: site.hub.refused["key"] >= 1, link=link)
    assert site.hub.send(connection, Acknowledged(batch=1)) == "gone"
    assert any("not authorized any more" in line for line in caplog.messages)
    before = site.hub.refused["key"]
    again = site.link(key)
    site.until(lambda: site.hub.refused["key"] > before, link=again)


def test_an_engine_cannot_call_itself_by_the_name_of_another(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A valid key is good for its own engine and for its data-parallel ranks only."""
    site.engine("gpu-1")
    other = site.link(site.engine("gpu-2"))
    site.until(lambda: site.hub.refused["engine_id"] >= 1, link=other)
    assert any("calls itself 'gpu-1'" in line for line in caplog.messages)
    assert site.heard(other, structs.replace(HELLO, engine_id="gpu-2")) is not None
    assert site.heard(other, structs.replace(HELLO, engine_id="gpu-2-dp3")) is not None


def test_a_rank_that_has_a_key_of_its_own_is_no_longer_its_namesakes(tmp_path: Path) -> None:
    """Authorising ``gpu-dp1`` takes that name from the key of ``gpu``."""
    public = create_controller_keys(tmp_path / "keys").public
    first, second = create_engine_key("gpu", public), create_engine_key("gpu-dp1", public)
    authorize(tmp_path / "keys", "gpu", first.pair.public)
    engines = AuthorizedEngines(tmp_path / "keys")
    assert engines.speaks_for(first.pair.public, "gpu-dp1")
    authorize(tmp_path / "keys", "gpu-dp1", second.pair.public)
    engines.refresh()
    assert not engines.speaks_for(first.pair.public, "gpu-dp1")
    assert engines.speaks_for(second.pair.public, "gpu-dp1")
    for name in ("gpu-", "gpu-dp", "gpu-dp1x", "gpu-dp²", "", "gpu-dp1-dp1"):
        assert not engines.speaks_for(first.pair.public, name)


def test_replicas_share_a_key_and_no_other_name(tmp_path: Path) -> None:
    """``chat-*`` speaks for every name that begins so and has no key of its own, and for its ranks."""
    public = create_controller_keys(tmp_path / "keys").public
    shared, single = create_engine_key("chat-*", public), create_engine_key("chat-7", public)
    authorize(tmp_path / "keys", "chat-*", shared.pair.public)
    authorize(tmp_path / "keys", "chat-7", single.pair.public)
    engines = AuthorizedEngines(tmp_path / "keys")
    assert all(engines.speaks_for(shared.pair.public, name) for name in ("chat-7d9f-x2", "chat-7d9f-x2-dp1"))
    for name in ("chat-7", "chat-", "chat", "chatter-1", "gpu-1", ""):
        assert not engines.speaks_for(shared.pair.public, name)
    assert not engines.speaks_for(single.pair.public, "chat-7d9f-x2")


def test_a_line_that_makes_no_sense_authorizes_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The other lines hold; the bad one is named by its number."""
    public = create_controller_keys(tmp_path / "keys").public
    authorize(tmp_path / "keys", "good", public)
    file = tmp_path / "keys" / "authorized_engines"
    file.write_text(file.read_text() + f"bad {public[:-1]}\nalone\n../up {public}\n\n# a comment\n")
    assert read_authorized(tmp_path / "keys") == {"good": public}
    assert [line.split(" line ")[1].split(" ")[0] for line in caplog.messages] == ["3", "4", "5"]


def test_the_ceremony_with_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Make, list, authorize, revoke: files 0600 in folders 0700, and no secret on the screen or in a representation."""
    keys, there = tmp_path / "c" / "keys", tmp_path / "engine" / "gpu-2.key"
    folder = ["--keys", str(keys)]
    assert run(["keys", "controller", *folder]) == 0
    assert run(["keys", "engine", "gpu-1", *folder]) == 0
    public = load_controller_keys(keys).public
    assert engine_key.main(["gpu-2", "--controller", public, "--output", str(there)]) == 0
    command = capsys.readouterr().out.strip().splitlines()[-1]
    assert command.startswith("sagesched keys authorize gpu-2 '")
    assert run(["keys", "authorize", "gpu-2", command.split("'")[1], *folder]) == 0
    assert run(["keys", "list", *folder]) == 0
    shown = capsys.readouterr().out
    assert f"controller {public}" in shown
    assert "engine gpu-1 " in shown
    assert "engine gpu-2 " in shown
    assert set(read_authorized(keys)) == {"gpu-1", "gpu-2"}
    for path in (*keys.rglob("*"), keys, there, there.parent):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    one = load_engine_key(keys / "engines" / "gpu-1.key")
    assert run(["keys", "revoke", "gpu-1", *folder]) == 0
    assert not (keys / "engines" / "gpu-1.key").exists()
    assert set(read_authorized(keys)) == {"gpu-2"}
    everything = "".join(capsys.readouterr()) + shown + repr(one) + repr(load_controller_keys(keys))
    for secret in (one.pair.secret, load_engine_key(there).pair.secret, load_controller_keys(keys).secret):
        assert secret not in everything


def test_replacing_a_key_revokes_the_old_one(tmp_path: Path) -> None:
    """Nothing is overwritten unless it is asked for, and then the old key is worth nothing."""
    folder = ["--keys", str(tmp_path / "keys")]
    assert run(["keys", "controller", *folder]) == 0
    assert run(["keys", "engine", "gpu-1", *folder]) == 0
    before = read_authorized(tmp_path / "keys")["gpu-1"]
    assert run(["keys", "controller", *folder]) == 2
    assert run(["keys", "engine", "gpu-1", *folder]) == 2
    assert read_authorized(tmp_path / "keys") == {"gpu-1": before}
    assert run(["keys", "engine", "gpu-1", "--replace", *folder]) == 0
    now = read_authorized(tmp_path / "keys")["gpu-1"]
    assert now != before
    assert load_engine_key(tmp_path / "keys" / "engines" / "gpu-1.key").pair.public == now


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keys", "engine", "gpu-1"], "make one with 'sagesched keys controller"),
        (["keys", "list"], "make one with 'sagesched keys controller"),
        (["keys", "authorize", "../gpu", "x" * 40], "cannot have a key"),
        (["keys", "authorize", "gpu-1", "short"], "is none"),
        (["keys", "revoke", "gpu-1"], "nothing to revoke"),
        (["keys", "nonsense"], "nonsense"),
    ],
)
def test_bad_use_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """It names the thing and the remedy, and writes nothing."""
    folder = ["--keys", str(tmp_path / "keys")] if arguments[1] != "nonsense" else []
    assert run([*arguments, *folder]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.glob("keys/*"))


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """The remedy stands in the message, the secret does not; so with a damaged file."""
    keys = tmp_path / "keys"
    pair = create_controller_keys(keys)
    file = keys / "controller.key"
    os.chmod(file, 0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_controller_keys(keys)
    os.chmod(file, 0o600)
    file.write_text(f'secret = "{pair.secret}" oops')
    with pytest.raises(ConfigError, match="damaged") as raised:
        load_controller_keys(keys)
    assert pair.secret not in str(raised.value)
    file.write_text(f'secret = "{pair.secret}"\npublic = 5\n')
    with pytest.raises(ConfigError, match="does not hold") as raised:
        load_controller_keys(keys)
    assert pair.secret not in str(raised.value)


def test_refusals_are_metrics(site: Site) -> None:
    """An operator's alert can stand on them."""
    from controller.monitoring.live_state import Live
    from controller.monitoring.metrics import Metrics

    metrics = Metrics(Live())
    metrics.watch_hub(site.hub)
    link = site.link(site.engine("gpu-1", authorized=False))
    site.until(lambda: site.hub.refused["key"] >= 1, link=link)
    page = metrics.page().decode()
    assert f'sagesched_refused_engines_total{{reason="key"}} {float(site.hub.refused["key"])}' in page
    assert 'sagesched_refused_engines_total{reason="handshake"} 0.0' in page


@pytest.fixture(autouse=True)
def _heed_warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
