"""CURVE key pairs of the controller and of engines, in files that only their owner can read.

A public key may be shown to anyone; a secret key is never printed, logged or put into an exception.
The controller's folder holds ``controller.key`` and ``authorized_engines`` (`engine_adapter.transport.authorized_engines`); an engine has
one file with its name, its pair and the controller's public key, by which it authenticates the controller.

Source: https://rfc.zeromq.org/spec/25/ (CurveZMQ), https://rfc.zeromq.org/spec/32/ (Z85, the keys' text form).
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from engine_adapter.transport.socket_folder import system_users
from store.errors import ConfigError

CONTROLLER_FILE = "controller.key"
OWNER_ONLY, OWNER_ONLY_FOLDER = 0o600, 0o700
KEY_CHARACTERS = 40
REPLICAS = "-*"
"""End of a key's name that stands for any: replicas of one deployment share the key, each under a name of its own."""

_ENGINE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,125}(-\*)?|[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY = re.compile(rf"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{{}}@%$#]{{{KEY_CHARACTERS}}}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public and a secret key, in Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """The credentials of an engine: its name, its key pair, and the controller that it trusts."""

    engine_id: str
    pair: KeyPair
    controller: str
    """The controller's public key."""


def default_keys_path() -> Path:
    """Return the controller's default folder of keys, in the user's configuration directory."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "sagesched" / "keys"


def create_controller_keys(folder: Path, *, replace: bool = False) -> KeyPair:
    """Create the controller's pair; raise `ConfigError` when one exists, unless ``replace``."""
    file = folder / CONTROLLER_FILE
    if file.exists() and not replace:
        raise ConfigError(
            f"controller key {str(file)!r} exists: engines trust it; give --replace to make a new one, "
            "after which every engine needs a new key file"
        )
    make_private_folder(folder)
    pair = _new_pair()
    head = "# The controller's key pair: the secret one never leaves this file.\n"
    write_private(file, head + _toml({"public": pair.public, "secret": pair.secret}))
    return pair


def load_controller_keys(folder: Path) -> KeyPair:
    """Return the controller's pair; raise `ConfigError` when there is none or others can read it."""
    file = folder / CONTROLLER_FILE
    if not file.exists():
        raise ConfigError(
            f"controller key {str(file)!r} is missing: make one with 'sagesched keys controller --keys {folder}'"
        )
    values = _read_private(file, {"public", "secret"})
    return KeyPair(values["public"], values["secret"])


def create_engine_key(engine_id: str, controller: str) -> EngineKey:
    """Create a pair for an engine of a controller; raise `ConfigError` for an invalid name or key."""
    return EngineKey(engine_id=checked_engine_id(engine_id), pair=_new_pair(), controller=checked_key(controller))


def save_engine_key(file: Path, key: EngineKey, *, replace: bool = False) -> None:
    """Write an engine's file; raise `ConfigError` when it exists, unless ``replace``."""
    if file.exists() and not replace:
        raise ConfigError(f"engine key {str(file)!r} exists: give --replace to make a new one, or another --output")
    if not file.parent.exists():
        make_private_folder(file.parent)
    head = (
        "# Key of one engine: whoever reads it can pose as the engine. Keep it readable for the engine's user only.\n"
    )
    values = {"engine": key.engine_id, "public": key.pair.public, "secret": key.pair.secret}
    write_private(file, head + _toml({**values, "controller": key.controller}))


def load_engine_key(file: Path) -> EngineKey:
    """Read an engine's file; raise `ConfigError` when it is missing, invalid or readable for others."""
    if not file.exists():
        raise ConfigError(f"engine key {str(file)!r} is missing: make one with 'sagesched keys engine ENGINE_ID'")
    values = _read_private(file, {"engine", "public", "secret", "controller"})
    return EngineKey(
        engine_id=checked_engine_id(values["engine"]),
        pair=KeyPair(values["public"], values["secret"]),
        controller=values["controller"],
    )


def checked_engine_id(engine_id: str) -> str:
    """Return the name; raise `ConfigError` for one that is not valid in a file name and on one line.

    One that ends with `REPLICAS` is the name of a key that all replicas of a deployment share.

    >>> checked_engine_id("gpu-1")
    'gpu-1'
    >>> checked_engine_id("../x")
    Traceback (most recent call last):
    store.errors.ConfigError: engine id '../x' cannot have a key: use up to 128 of A-Z a-z 0-9 . _ -, and -* at the end for replicas
    """
    if not _ENGINE_ID.fullmatch(engine_id):
        raise ConfigError(
            f"engine id {engine_id!r:.140} cannot have a key: use up to 128 of A-Z a-z 0-9 . _ -, and -* at the end for replicas"
        )
    return engine_id


def checked_key(public: str) -> str:
    """Return the public key; raise `ConfigError` for an invalid one."""
    if not _KEY.fullmatch(public):
        raise ConfigError(f"public key {public!r:.60} is none: give the {KEY_CHARACTERS} characters in single quotes")
    return public


def make_private_folder(folder: Path) -> None:
    """Create a folder for the owner only; raise `ConfigError` when that fails or others can read it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY_FOLDER)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"folder {str(folder)!r} cannot be made ({error.strerror}): choose another") from None
    if mode & 0o077:
        raise ConfigError(f"folder {str(folder)!r} is open to others (mode {mode:04o}): chmod 700 {folder}")


def write_private(file: Path, text: str) -> None:
    """Write a file, atomically and durably, that only its owner can read."""
    try:
        from store.atomic_file import replace_file  # noqa: PLC0415 - no engine's process writes keys

        replace_file(file, text.encode("ascii"), mode=OWNER_ONLY)
    except OSError as error:
        raise ConfigError(f"cannot write {str(file)!r} ({error.strerror}): choose another folder") from None


def _new_pair() -> KeyPair:
    """Create a pair whose public key cannot be mistaken for a command-line flag."""
    public = b"-"
    while public.startswith(b"-"):
        public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def _toml(values: dict[str, str]) -> str:
    return "".join(f'{name} = "{value}"\n' for name, value in values.items())


def _is_mounted_secret(status: os.stat_result) -> bool:
    """Whether root lets a group of this process read a file, and nobody write it: a Secret of a pod with ``fsGroup``."""
    is_ours = status.st_gid in {os.getegid(), *os.getgroups()}
    return stat.S_IMODE(status.st_mode) == 0o440 and is_ours and status.st_uid in system_users()


def _read_private(file: Path, names: set[str]) -> dict[str, str]:
    """Read a file of keys; no error message contains its contents."""
    try:
        status = file.stat()
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077 and not _is_mounted_secret(status):
            raise ConfigError(f"key file {str(file)!r} can be read by others (mode {mode:04o}): chmod 600 {file}")
        values = tomllib.loads(file.read_text(encoding="ascii"))
    except OSError as error:
        raise ConfigError(f"key file {str(file)!r} cannot be read ({error.strerror}): check its owner") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"key file {str(file)!r} is damaged: make it again with 'sagesched keys'") from None
    keys_wrong = any(not _KEY.fullmatch(str(values.get(name))) for name in names - {"engine"})
    if values.keys() != names or keys_wrong or not all(isinstance(value, str) for value in values.values()):
        raise ConfigError(f"key file {str(file)!r} does not hold {sorted(names)}: make it again with 'sagesched keys'")
    return values
