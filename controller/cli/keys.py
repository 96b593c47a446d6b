"""`keys`: the CURVE keys by which the controller and engines on other machines authenticate each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli.help import HelpfulGroup
from controller.cli.output import say
from controller.config import load_config
from engine_adapter.transport.authorized_engines import authorize as let_in
from engine_adapter.transport.authorized_engines import read_authorized
from engine_adapter.transport.authorized_engines import revoke as shut_out
from engine_adapter.transport.keys import (
    checked_engine_id,
    create_controller_keys,
    create_engine_key,
    load_controller_keys,
    save_engine_key,
)

KeysFlag = Annotated[Path | None, typer.Option("--keys", metavar="DIR", help="folder of keys, instead of engine.keys")]
ConfigFlag = Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", help="configuration file")]
ReplaceFlag = Annotated[bool, typer.Option("--replace", help="replace an old key")]
EngineArgument = Annotated[str, typer.Argument(metavar="ENGINE_ID", help="the engine's name, its engine_id")]

keys = typer.Typer(
    name="keys",
    help="Manage keys for engines on other machines. tcp:// endpoints need them; secret keys are never printed.",
    epilog="Example: sagesched keys controller && sagesched keys engine gpu-1 && sagesched keys list",
    cls=HelpfulGroup,
    rich_markup_mode=None,
)


def add_keys(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(keys)


@keys.command(epilog="Example: sagesched keys controller --keys /etc/sagesched/keys")
def controller(*, replace: ReplaceFlag = False, folder: KeysFlag = None, config: ConfigFlag = None) -> None:
    """Make the controller's key pair, once. It prints the public key, which engines need."""
    path = _folder(folder, config)
    pair = create_controller_keys(path, replace=replace)
    say(f"made the controller's key pair in {path}")
    say(f"public key: {pair.public}")


@keys.command(epilog="Example: sagesched keys engine gpu-1, then copy gpu-1.key to the engine's machine with scp -p")
def engine(
    engine_id: EngineArgument,
    *,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="file to write (engines/ENGINE_ID.key)")] = None,
    replace: ReplaceFlag = False,
    folder: KeysFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Make an engine's key file and admit it. Copy the file to the engine's machine only.

    NAME-* makes one key for all replicas of a deployment, each of which has a name of its own that begins with NAME-.

    To make the secret key on the engine's own machine instead: python -m engine_adapter.engine_key there,
    and `keys authorize` here.
    """
    path = _folder(folder, config)
    key = create_engine_key(engine_id, load_controller_keys(path).public)
    file = output or _engine_file(path, engine_id)
    known = read_authorized(path).get(engine_id)
    if known is None or replace:
        save_engine_key(file, key, replace=replace)
    let_in(path, engine_id, key.pair.public, replace=replace)
    say(f"made {file}; engine {engine_id!r} may connect")
    say("copy it to the engine's machine (scp -p), remove it here, and set key_file there")


@keys.command(epilog="Example: sagesched keys authorize gpu-1 'rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7'")
def authorize(
    engine_id: EngineArgument,
    public_key: Annotated[str, typer.Argument(metavar="PUBLIC_KEY", help="as the engine's machine printed it")],
    *,
    replace: ReplaceFlag = False,
    folder: KeysFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Admit an engine with a key pair of its own. At once, also in a running controller."""
    let_in(_folder(folder, config), engine_id, public_key, replace=replace)
    say(f"engine {engine_id!r} may connect")


@keys.command(epilog="Example: sagesched keys revoke gpu-1")
def revoke(engine_id: EngineArgument, *, folder: KeysFlag = None, config: ConfigFlag = None) -> None:
    """Revoke an engine's key at once and for good. The engine serves first come, first served from then on."""
    path = _folder(folder, config)
    shut_out(path, engine_id)
    _engine_file(path, checked_engine_id(engine_id)).unlink(missing_ok=True)
    say(f"engine {engine_id!r} may not connect any more")


@keys.command("list", epilog="Example: sagesched keys list --config sagesched.toml")
def list_keys(*, folder: KeysFlag = None, config: ConfigFlag = None) -> None:
    """List the public keys. The controller's, and those of the engines that may connect."""
    path = _folder(folder, config)
    say(f"controller {load_controller_keys(path).public}")
    for engine_id, public in sorted(read_authorized(path).items()):
        say(f"engine {engine_id} {public}")


def _folder(folder: Path | None, config: Path | None) -> Path:
    return load_config({"engine": {"keys": folder}}, file=config).engine.keys


def _engine_file(folder: Path, engine_id: str) -> Path:
    return folder / "engines" / f"{engine_id.replace('*', 'replicas')}.key"
