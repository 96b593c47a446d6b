"""CURVE key pairs of the controller and of engines, as files that only their owner can read.

A public key may be shown to anybody; a secret key is never printed, logged or put into an exception.
The controller's folder holds ``controller.key`` and ``authorized_engines`` (`engine_adapter.transport.authorized_engines`); an engine has
one file with its name, its pair and the controller's public key, by which it knows that it talks to the right one.

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

from store.atomic_file import replace_file
from store.errors import ConfigError

CONTROLLER_FILE = "controller.key"
OWNER_ONLY, OWNER_ONLY_FOLDER = 0o600, 0o700
KEY_CHARACTERS = 40
_ENGINE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY = re.compile(rf"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{{}}@%$#]{{{KEY_CHARACTERS}}}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret one, in Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """What an engine needs to connect: who it is, its pair, and which controller it trusts."""

    engine_id: str
    pair: KeyPair
    controller: str
    """The controller's public key."""


def default_keys_path() -> Path:
    """The controller's folder of keys when nobody says otherwise: in the user's configuration directory."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "sagesched" / "keys"


def create_controller_keys(folder: Path, *, replace: bool = False) -> KeyPair:
    """Make the controller's pair; raises `ConfigError` where there is one already, unless it is to be replaced."""
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
    """The controller's pair; raises `ConfigError` where there is none or others can read it."""
    file = folder / CONTROLLER_FILE
    if not file.exists():
        raise ConfigError(
            f"controller key {str(file)!r} is missing: make one with 'sagesched keys controller --keys {folder}'"
        )
    values = _read_private(file, {"public", "secret"})
    return KeyPair(values["public"], values["secret"])


def create_engine_key(engine_id: str, controller: str) -> EngineKey:
    """A new pair for an engine of a controller; raises `ConfigError` for a bad name or key."""
    return EngineKey(engine_id=checked_engine_id(engine_id), pair=_new_pair(), controller=checked_key(controller))


def save_engine_key(file: Path, key: EngineKey, *, replace: bool = False) -> None:
    """Write an engine's file; raises `ConfigError` where there is one already, unless it is to be replaced."""
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
    """An engine's file; raises `ConfigError` where it is missing, wrong or readable for others."""
    if not file.exists():
        raise ConfigError(f"engine key {str(file)!r} is missing: make one with 'sagesched keys engine ENGINE_ID'")
    values = _read_private(file, {"engine", "public", "secret", "controller"})
    return EngineKey(
        engine_id=checked_engine_id(values["engine"]),
        pair=KeyPair(values["public"], values["secret"]),
        controller=values["controller"],
    )


def checked_engine_id(engine_id: str) -> str:
    """The name itself; raises `ConfigError` for one that cannot stand in a file name and on one line.

    >>> checked_engine_id("gpu-1")
    'gpu-1'
    >>> checked_engine_id("../x")
    Traceback (most recent call last):
    store.errors.ConfigError: engine id '../x' cannot have a key: use up to 128 of A-Z a-z 0-9 . _ -
    """
    if not _ENGINE_ID.fullmatch(engine_id):
        raise ConfigError(f"engine id {engine_id!r:.140} cannot have a key: use up to 128 of A-Z a-z 0-9 . _ -")
    return engine_id


def checked_key(public: str) -> str:
    """The public key itself; raises `ConfigError` for what is none."""
    if not _KEY.fullmatch(public):
        raise ConfigError(f"public key {public!r:.60} is none: give the {KEY_CHARACTERS} characters in single quotes")
    return public


def make_private_folder(folder: Path) -> None:
    """Make a folder for the owner alone; raises `ConfigError` where it cannot be or others may look into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY_FOLDER)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"folder {str(folder)!r} cannot be made ({error.strerror}): choose another") from None
    if mode & 0o077:
        raise ConfigError(f"folder {str(folder)!r} is open to others (mode {mode:04o}): chmod 700 {folder}")


def write_private(file: Path, text: str) -> None:
    """Put a file in place, whole and durable or not at all, that its owner alone can read."""
    try:
        replace_file(file, text.encode("ascii"), mode=OWNER_ONLY)
    except OSError as error:
        raise ConfigError(f"cannot write {str(file)!r} ({error.strerror}): choose another folder") from None


def _new_pair() -> KeyPair:
    """A pair whose public key no command line takes for a flag."""
    public = b"-"
    while public.startswith(b"-"):
        public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def _toml(values: dict[str, str]) -> str:
    return "".join(f'{name} = "{value}"\n' for name, value in values.items())


def _read_private(file: Path, names: set[str]) -> dict[str, str]:
    """A file of keys; what is in it appears in no message."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
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
