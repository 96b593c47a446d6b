"""`workload`: files of requests that anybody can make again, or that come from public traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli.help import EXPERIMENT, HelpfulGroup
from controller.cli.output import say
from store.errors import WorkloadError

OutFlag = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.parquet", help="file to write")]

workload = typer.Typer(
    name="workload",
    help="Make or convert a workload file.",
    epilog="Example: sagesched workload make azure-conv && sagesched bench --workload azure-conv.parquet",
    cls=HelpfulGroup,
    rich_markup_mode=None,
)


def add_workload(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(workload, rich_help_panel=EXPERIMENT)


@workload.command(epilog="Example: sagesched workload make mooncake --requests 4000 --seed 2 -o mooncake.parquet")
def make(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="a kind of traffic; `workload kinds` lists them")],
    *,
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="number of requests")] = 8000,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same file")] = 1,
    output: OutFlag = None,
) -> None:
    """Make a workload from published statistics. The same arguments give the same file."""
    from importlib.metadata import version

    from engine_adapter.workloads.made import KINDS, made
    from engine_adapter.workloads.parquet import write_parquet

    rows = made(kind, requests=requests, seed=seed).rows
    path = _parquet(output or Path(f"{kind}.parquet"))
    write_parquet(
        path,
        rows,
        {
            "made": kind,
            "requests": requests,
            "seed": seed,
            "release": version("sagesched-controller"),
            "statistics": KINDS[kind].source,
            "licence": "Apache-2.0",
        },
    )
    say(f"{path}: {len(rows):,} requests, {KINDS[kind].about}")


@workload.command(epilog="Example: sagesched workload kinds")
def kinds() -> None:
    """List the kinds of traffic that can be made."""
    from engine_adapter.workloads.made import KINDS

    width = max(map(len, KINDS))
    for name, kind in KINDS.items():
        say(f"{name:{width}}  {kind.about} ({kind.source})")


@workload.command(epilog="Example: sagesched workload convert AzureLLMInferenceTrace_conv.csv -o azure.parquet")
def convert(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Azure or BurstGPT CSV, Mooncake, ServeGen or vLLM JSONL, ShareGPT JSON"),
    ],
    *,
    output: OutFlag = None,
    source: Annotated[str | None, typer.Option(help="where it comes from; known for public traces")] = None,
    licence: Annotated[str | None, typer.Option(help="its licence; known for public traces")] = None,
) -> None:
    """Convert a public file to Parquet. Source, licence and hash are kept in the file."""
    from hashlib import sha256

    from engine_adapter.workloads.formats import known_source, load_workload
    from engine_adapter.workloads.parquet import write_parquet

    loaded = load_workload(file)
    usual = known_source(loaded) or (None, None)
    about = {"source": source or usual[0], "licence": licence or usual[1]}
    missing = [f"--{name}" for name, value in about.items() if value is None]
    if missing:
        raise WorkloadError(f"{file}: the format does not say where it comes from: give {' and '.join(missing)}")
    path = _parquet(output or file.with_suffix(".parquet"))
    if path.exists() and path.samefile(file):
        raise WorkloadError(f"{path} is the file that is converted: choose another with --output")
    about |= {"file": file.name, "sha256": sha256(file.read_bytes()).hexdigest()}
    write_parquet(path, loaded.rows, about)
    say(f"{path}: {len(loaded):,} requests from {about['source']}, {about['licence']}, sha256 {about['sha256']}")


def _parquet(path: Path) -> Path:
    if path.suffix != ".parquet":
        raise WorkloadError(f"{path} is written as Parquet: give a name that ends with .parquet")
    return path
