import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = {"controller", "online_learning", "store", "dashboard", "engine_adapter"}


def run(*command: object, **kwargs: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **kwargs)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    [built] = folder.glob("*.whl")
    return built


def test_the_base_install_changes_nothing_beside_vllm(wheel: Path, tmp_path: Path) -> None:
    """Into an environment that holds vLLM's requirements, the base install adds itself and nothing else."""
    environment = tmp_path / "serving"
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    inner = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # The serving environment sees what is installed here, vLLM's requirements among it, but not our own install.
    here = Path(sysconfig.get_path("purelib"))
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for entry in here.iterdir():
        if not entry.name.startswith(("_editable_impl_sagesched", "sagesched_controller", "pip")):
            (mirror / entry.name).symlink_to(entry)
    Path(inner, "mirror.pth").write_text(f"{mirror}\n")
    before = set(run(python, "-m", "pip", "freeze").splitlines())
    assert any(line.startswith("pyzmq==") for line in before), "the mirror is visible"
    run(python, "-m", "pip", "install", "-q", "--no-index", wheel, env={"PATH": "/usr/bin:/bin"})
    after = set(run(python, "-m", "pip", "freeze").splitlines())
    assert {line.split("==")[0].split(" @")[0] for line in after - before} == {"sagesched-controller"}
    assert before - after == set()
    run(
        python,
        "-c",
        "import engine_adapter.agent.agent, engine_adapter.transport.zmq_sockets, store.records",
        cwd=tmp_path,
    )


def test_the_wheel_holds_the_five_packages_and_nothing_else(wheel: Path) -> None:
    """Top-level names in the wheel are the five packages and its metadata."""
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == NAMES


def test_the_adapter_needs_what_vllm_has_already() -> None:
    """The base dependencies are msgspec and pyzmq alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {need.split(">")[0] for need in project["dependencies"]} == {"msgspec", "pyzmq"}


def test_no_other_distribution_owns_our_names() -> None:
    """The five import names are generic; nobody else in this environment has one of them."""
    owners = {
        (distribution.metadata["Name"], file.parts[0])
        for distribution in metadata.distributions()
        if distribution.metadata["Name"] != "sagesched-controller"
        for file in distribution.files or ()
        if file.parts[0] in NAMES or file.parts[0].removesuffix(".py") in NAMES
    }
    assert owners == set()


ROOMS_INSIDE_VLLM = ("vllm_scheduler", "vllm", "agent", "ordering", "transport")
HEAVY = {"duckdb", "river", "streamlit"}


def loaded_by(*modules: str) -> set[str]:
    """Names of the modules that a process holds after importing these."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    return set(run(sys.executable, "-c", code).splitlines()[-1].split())


def ours(loaded: set[str]) -> set[str]:
    """The modules of ours but for the packages' empty roots."""
    return {name for name in loaded if name.split(".")[0] in NAMES} - {"engine_adapter", "store"}


def allowed(name: str) -> bool:
    """Whether a module of ours may be loaded inside vLLM."""
    package, _, rest = name.partition(".")
    if package == "store":
        return rest in {"records", "bounds", "errors"}
    return package == "engine_adapter" and rest.split(".")[0] in ROOMS_INSIDE_VLLM


def test_the_engine_process_imports_nothing_heavy() -> None:
    """The agent, the order and the transport load the records, their bounds and errors: no database, no learner, no numpy."""
    loaded = loaded_by(
        "engine_adapter.agent.agent", "engine_adapter.transport.zmq_sockets", "engine_adapter.ordering.ordering"
    )
    assert loaded & (HEAVY | {"sklearn", "numpy", "pyarrow"}) == set()
    assert {name for name in ours(loaded) if not allowed(name)} == set()


def test_the_middleware_imports_nothing_of_the_engine() -> None:
    """In vLLM's API server of ours are the hints in requests, the bounds and the errors; no socket and no scheduler."""
    loaded = loaded_by("engine_adapter.http_hints")
    assert loaded & (HEAVY | {"zmq", "vllm", "prometheus_client"}) == set()
    rooms = {".".join(name.split(".")[:2]) for name in ours(loaded)}
    assert rooms == {"engine_adapter.http_hints", "engine_adapter.hints", "store.bounds", "store.errors"}


@pytest.mark.vllm
def test_the_plugin_imports_nothing_of_the_controller() -> None:
    """Inside the vLLM process only the plugin's rooms, the records, their bounds and the errors are ours."""
    loaded = loaded_by("engine_adapter.vllm_scheduler")
    assert loaded & HEAVY == set()
    assert {name for name in ours(loaded) if not allowed(name)} == set()
