"""The units of systemd and the compose file are valid, and start commands that exist, with flags that exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose

from controller.config import load_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
SYSTEMD = DEPLOY / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
COMPOSE = DEPLOY / "compose.yaml"
VARIABLES = {"SAGESCHED_HTTP__TOKEN": "t" * 64, "SAGESCHED_HTTP__READ_TOKEN": "r" * 64}

needs = {
    name: pytest.mark.skipif(shutil.which(name) is None, reason=f"there is no {name} here")
    for name in ("systemd-analyze", "systemd-sysusers", "systemd-tmpfiles", "docker")
}


def settings(text: str) -> dict[str, str]:
    """The environment of a unit, as far as it is ours."""
    return dict(re.findall(r"^Environment=(SAGESCHED_\w+)=(.+)$", text, re.MULTILINE))


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_a_command_that_exists(unit: Path, check_command: Callable[[list[str]], None]) -> None:
    """What it starts can be understood, and the environment that it sets is a setting."""
    text = unit.read_text()
    [command] = re.findall(r"^ExecStart=\S+/sagesched (.+)$", text, re.MULTILINE)
    check_command(shlex.split(command))
    load_config(environment=settings(text))


@needs["systemd-analyze"]
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_understands_a_unit(unit: Path, tmp_path: Path) -> None:
    """Once the program is where the unit says, `systemd-analyze verify` has nothing to say."""
    here = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit.read_text(), flags=re.MULTILINE)
    here = re.sub(r"^(After|Wants)=sagesched\.service\n", "", here, flags=re.MULTILINE)
    (tmp_path / unit.name).write_text(here)
    assert verified(tmp_path, unit.name) == []


@needs["systemd-analyze"]
def test_systemd_understands_the_drop_in_for_vllm(tmp_path: Path) -> None:
    """Beside a unit that runs vLLM; and it names the controller's socket."""
    (tmp_path / "vllm.service").write_text(f"[Service]\nExecStart={sys.executable} -V\n")
    drop_in = tmp_path / "vllm.service.d" / "sagesched.conf"
    drop_in.parent.mkdir()
    text = (SYSTEMD / "vllm-sagesched.conf").read_text()
    drop_in.write_text(text)
    assert verified(tmp_path, "vllm.service") == []
    assert (
        settings(text)["SAGESCHED_ENDPOINT"]
        == settings((SYSTEMD / "sagesched.service").read_text())["SAGESCHED_ENDPOINT"]
    )
    drop_in.write_text(text.replace("User=", "Usr="))
    assert "Usr" in "".join(verified(tmp_path, "vllm.service"))


def verified(folder: Path, unit: str) -> list[str]:
    """What `systemd-analyze verify` says of a unit and its drop-ins."""
    done = run("systemd-analyze", "verify", "--man=no", folder / unit, SYSTEMD_UNIT_PATH=f"{folder}:")
    lines = [line for line in done.stderr.splitlines() if str(folder) in line or unit in line]
    return lines or [done.stderr] * bool(done.returncode)


@needs["systemd-sysusers"]
@needs["systemd-tmpfiles"]
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders to a user")
def test_systemd_makes_the_user_and_its_folders(tmp_path: Path) -> None:
    """In a root folder of its own: a user without a login, and the socket's folder, which is that user's alone."""
    (tmp_path / "etc").mkdir()
    for program, file in (("sysusers", "sagesched-sysusers.conf"), ("tmpfiles", "sagesched-tmpfiles.conf")):
        more = ["--create"] if program == "tmpfiles" else []
        done = run(f"systemd-{program}", f"--root={tmp_path}", *more, SYSTEMD / file)
        assert done.returncode == 0, done.stderr
    [line] = [line for line in (tmp_path / "etc" / "passwd").read_text().splitlines() if line.startswith("vllm:")]
    _, _, user, group, _, home, shell = line.split(":")
    assert (home, shell.endswith("nologin")) == ("/var/lib/vllm", True)
    for folder, owner, mode in (
        ("run/sagesched", user, 0o700),
        ("var/lib/vllm", user, 0o700),
        ("etc/sagesched", "0", 0o750),
    ):
        status = (tmp_path / folder).stat()
        assert (str(status.st_uid), str(status.st_gid), status.st_mode & 0o7777) == (owner, group, mode)


def test_the_compose_file_keeps_to_the_specification() -> None:
    """Every key is one of the Compose Specification; what it mounts from here is here; one with a wrong key is refused."""
    text = COMPOSE.read_text()
    assert set(PyCompose.from_yaml(_merged(text)).service_names()) == set(yaml.safe_load(text)["services"])
    with pytest.raises(ValueError, match="shm_sice"):
        PyCompose.from_yaml(_merged(text).replace("shm_size", "shm_sice"))
    mounts = [
        mount.split(":")[0]
        for service in yaml.safe_load(text)["services"].values()
        for mount in service.get("volumes", ())
        if mount.startswith(".")
    ]
    assert len(mounts) == 5
    assert [mount for mount in mounts if not (DEPLOY / mount).is_file()] == []


def _merged(text: str) -> str:
    """The file with its anchors filled in, which the parser leaves to its caller."""
    return yaml.safe_dump(yaml.safe_load(text))


def test_compose_starts_commands_that_exist(check_command: Callable[[list[str]], None]) -> None:
    """Controller and dashboard, with settings that are some; each builds an image from a file that is there."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    check_command(services["dashboard"]["command"])
    for name in ("controller", "dashboard", "vllm"):
        service = services[name]
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert services["controller"]["environment"].keys() == VARIABLES.keys()
    load_config(environment=VARIABLES)
    assert "command" not in services["controller"], "the image's own"
    assert services["vllm"]["volumes"][0] == services["controller"]["volumes"][0], "where the two meet"


@needs["docker"]
def test_docker_understands_the_compose_file() -> None:
    """Where it has the plugin: `docker compose config` resolves it, and demands the tokens."""
    if run("docker", "compose", "version").returncode != 0:
        pytest.skip("this docker has no compose")
    command = ("docker", "compose", "-f", str(COMPOSE), "config", "--quiet")
    done = run(*command, **VARIABLES)
    assert (done.returncode, done.stderr) == (0, "")
    assert "write it into .env" in run(*command).stderr


def test_promtool_understands_what_compose_gives_prometheus(promtool: str, tmp_path: Path) -> None:
    """With the rules where compose puts them, and the job that rules and panels ask for."""
    token = tmp_path / "read_token"
    token.touch()
    text = (DEPLOY / "compose" / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/read_token", str(token)))
    shutil.copy(ROOT / "docs" / "monitoring" / "alerts.yml", tmp_path)
    done = run(promtool, "check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "job_name: sagesched" in text


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    """The provider looks where compose mounts the dashboard, and the source is of the kind that its panels ask for."""
    [provider] = yaml.safe_load((DEPLOY / "compose" / "grafana-dashboards.yaml").read_text())["providers"]
    mounts = yaml.safe_load(COMPOSE.read_text())["services"]["grafana"]["volumes"]
    assert f"../monitoring/grafana.json:{provider['options']['path']}/sagesched.json:ro" in mounts
    [source] = yaml.safe_load((DEPLOY / "compose" / "grafana-datasource.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.parametrize(("typed", "offered"), [("sagesched be", "bench"), ("sagesched serve --obj", "--objective")])
def test_the_shell_completes_commands_and_flags(typed: str, offered: str) -> None:
    """Asked as bash asks, the program offers what begins so."""
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    command = [sys.executable, "-c", "from controller.cli.main import main; main()"]
    found = run(*command, **words, _SAGESCHED_COMPLETE="complete_bash")
    assert offered in found.stdout.split()
