"""Which folders a socket may lie in: those of the user, of a trusted group, and what Kubernetes makes."""

from __future__ import annotations

import codecs
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine_adapter.transport.keys import create_controller_keys, load_controller_keys
from engine_adapter.transport.socket_folder import group_id, prepare_folder
from engine_adapter.transport.zmq_sockets import ZmqHub, ZmqLink
from store.errors import ConfigError, SageError
from store.history.files import Folder

USER, OTHER_USER, GROUP = 2000, 2001, 3000
"""A pod's ``runAsUser``, another one, and its ``fsGroup``; nobody on this machine needs to be called so."""

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as several users")


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder of root's that every user can reach, as the kubelet makes it."""
    folder = Path(tempfile.mkdtemp(prefix="sagesched-volume-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def _said(action: Callable[[], object], user: int = USER, groups: tuple[int, ...] = (GROUP,)) -> str:
    """Run an action as a user in a child process, with its own group and others; what it raised, or nothing."""
    codecs.lookup("ascii")  # The child may not be able to read the standard library.
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        said = "died"
        try:
            os.setgroups(groups)
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            os.umask(0o022)
            action()
            said = ""
        except SageError as error:
            said = str(error)
        except Exception as error:  # noqa: BLE001 - said by the parent, whose test fails
            said = repr(error)
        finally:
            os.write(sink, said.encode())
            os._exit(0)
    os.close(sink)
    os.waitpid(child, 0)
    with os.fdopen(source) as answer:
        return answer.read()


def _own(folder: Path, mode: int, owner: int = 0, group: int = GROUP) -> Path:
    os.chown(folder, owner, group)
    os.chmod(folder, mode)
    return folder


@as_root
@pytest.mark.parametrize("mode", [0o1777, 0o3777], ids=["plain", "fsGroup"])
def test_a_folder_below_an_empty_dir_in_memory_needs_no_setting(volume: Path, mode: int) -> None:
    """The kubelet leaves it open to all with the sticky bit: the first process makes a folder that is its user's alone."""
    _own(volume, mode)
    for _ in range(2):
        assert _said(lambda: prepare_folder(volume / "engine")) == ""
    assert (volume / "engine").stat().st_mode & 0o777 == 0o700
    assert (volume / "engine").stat().st_uid == USER


@as_root
@pytest.mark.parametrize("mode", [0o777, 0o2777, 0o1777, 0o3777], ids=oct)
def test_an_empty_dir_itself_is_open_to_all(volume: Path, mode: int) -> None:
    """Named as the socket's own folder it is refused, with a group and without one, and the line says what to name."""
    _own(volume, mode)
    for group in (None, GROUP):
        said = _said(lambda group=group: prepare_folder(volume, group))  # type: ignore[misc]
        assert f"directory {volume} of the endpoint can be written by others: by everybody (mode {mode:04o})" in said
        assert ("own/engine.sock" if mode & 0o1000 else "medium: Memory") in said


@as_root
def test_below_a_folder_that_all_can_change_no_folder_is_safe(volume: Path) -> None:
    """An emptyDir on disk: whoever can rename the folder could put another in its place."""
    _own(volume, 0o2777)
    said = _said(lambda: prepare_folder(volume / "engine", GROUP))
    assert f"directory {volume} above the endpoint's can be written by everybody (mode 2777, no sticky bit)" in said
    assert "medium: Memory" in said


@as_root
@pytest.mark.parametrize("mode", [0o2770, 0o2775], ids=oct)
def test_a_volume_of_root_with_the_trusted_group_is_shared(volume: Path, mode: int) -> None:
    """As a claim with ``fsGroup`` comes: by the setting only, and two users meet at the socket in it."""
    _own(volume, mode)
    assert f"belongs to user 0, and this process is user {USER}" in _said(lambda: prepare_folder(volume))
    assert _said(lambda: prepare_folder(volume, GROUP)) == ""
    assert f"not in group {GROUP}" in _said(lambda: prepare_folder(volume, GROUP), groups=())
    endpoint = f"ipc://{volume}/engine.sock"
    assert _said(lambda: ZmqHub(endpoint, group=GROUP).close()) == ""
    status = (volume / "engine.sock").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (USER, GROUP, 0o660)
    assert _said(lambda: ZmqLink(endpoint, group=GROUP).close(), user=OTHER_USER) == ""


@as_root
def test_another_group_or_another_owner_is_refused(volume: Path) -> None:
    """Members of one group are trusted, not of any; a member's own folder is not root's."""
    _own(volume, 0o2770, group=GROUP + 1)
    assert "belongs to user 0" in _said(lambda: prepare_folder(volume, GROUP), groups=(GROUP, GROUP + 1))
    _own(volume, 0o2770, owner=OTHER_USER)
    assert f"belongs to user {OTHER_USER}" in _said(lambda: prepare_folder(volume, GROUP))
    _own(volume, 0o700, owner=OTHER_USER)
    said = _said(lambda: prepare_folder(volume / "engine"), groups=())
    assert "cannot be made (Permission denied)" in said
    _own(volume, 0o755, owner=OTHER_USER)
    volume.joinpath("engine").mkdir()
    _own(volume / "engine", 0o700, owner=USER)
    assert f"directory {volume} above the endpoint's belongs to user {OTHER_USER}" in _said(
        lambda: prepare_folder(volume / "engine")
    )


def test_a_folder_of_ours_that_a_group_can_change_needs_the_setting(tmp_path: Path) -> None:
    """The line names the group and both ways out."""
    group = os.getegid()
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o2770)
    with pytest.raises(ConfigError, match=rf"by group {group} \(mode 2770\): chmod 700 .*socket_group = {group}\)"):
        prepare_folder(folder)
    prepare_folder(folder, group)


def test_a_group_is_a_number() -> None:
    """A name may mean another group in another container."""
    with pytest.raises(ConfigError, match="'vllm' is no number"):
        group_id("vllm")


@as_root
def test_a_history_lies_in_a_folder_of_its_own_in_a_volume(volume: Path) -> None:
    """The volume's own folder stays root's, and the line says what to name."""
    _own(volume, 0o2775)
    said = _said(lambda: Folder(volume).create())
    assert f"{volume} belongs to user 0, and this process is user {USER}" in said
    assert str(volume / "history") in said
    assert _said(lambda: Folder(volume / "history").create()) == ""
    assert (volume / "history").stat().st_mode & 0o777 == 0o700
    _own(volume, 0o3777)
    assert str(volume / "history") in _said(lambda: Folder(volume).create())


@as_root
def test_keys_are_read_from_a_secret_that_the_pods_group_may_read(volume: Path) -> None:
    """As the kubelet mounts it: root's, 0440, below a folder that is open to all; another mode or group is refused."""
    keys = volume / "made"
    create_controller_keys(keys)
    file = _own(keys / "controller.key", 0o440)
    _own(keys, 0o3777)
    assert _said(lambda: load_controller_keys(keys)) == ""
    assert "can be read by others (mode 0440)" in _said(lambda: load_controller_keys(keys), groups=())
    for mode in (0o444, 0o460, 0o640):
        _own(file, mode)
        assert f"can be read by others (mode {mode:04o})" in _said(lambda: load_controller_keys(keys))
    _own(file, 0o440, owner=OTHER_USER)
    assert "can be read by others (mode 0440)" in _said(lambda: load_controller_keys(keys))
