"""The images' own steps, without a container runtime: in a copy of this system's root folder that is thrown away.

A base image is an environment in that copy: Python for the controller's, vLLM for the other. What the registries would
serve as base images is not tested, nor is a GPU.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine_adapter.serving.vllm_server import server_environment

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
IMAGES = sorted(DEPLOY.glob("Containerfile*"))

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="only root can mount a copy of the root folder"
)


def steps(image: Path) -> list[tuple[str, str]]:
    """Instructions of a file, with lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", image.read_text(), flags=re.MULTILINE))
    return [(word, rest.strip()) for word, rest in re.findall(r"^([A-Z]+) (.+)$", text, re.MULTILINE)]


def script(image: Path, base: Path) -> str:
    """A shell script that does what a build would, as root, on a base image whose programs are in ``base``."""
    lines = ["set -eu", f"export PATH={base}:$PATH"]
    for word, rest in steps(image):
        if word == "COPY":
            source, target = rest.split()
            assert source == "."
            sources = f"tar -C {shlex.quote(str(ROOT))} --exclude-from={shlex.quote(str(ROOT / '.dockerignore'))} -c ."
            lines.append(f"mkdir -p {target} && {sources} | tar -x -C {target}")
        elif word == "RUN":
            lines.append(rest)
        elif word == "ENV":
            lines += [f"export {each}" for each in shlex.split(rest)]
        else:
            assert word in {"ARG", "FROM", "USER", "VOLUME", "EXPOSE", "ENTRYPOINT", "CMD"}, word
    return "\n".join(lines)


def value(image: Path, word: str) -> str:
    [rest] = [rest for name, rest in steps(image) if name == word]
    return rest


IN_A_COPY = """
set -eu
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
for folder in dev sys; do mount --rbind /$folder /mnt/root/$folder; done
mount -t proc proc /mnt/root/proc
chmod 755 /mnt/root/root
chroot /mnt/root bash -c "$1"
"""


def in_a_copy(commands: str, timeout_s: float = 900.0) -> str:
    """Run commands as root in a copy of the root folder; what they print. No file and no process of it stays."""
    namespaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    command = ["unshare", *namespaces, "bash", "-c", IN_A_COPY, "bash", commands]
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SAGESCHED_"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=ours)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


AS_USER = "setpriv --reuid 2000 --regid 2000 --groups 2000 --"
VOLUMES = """
mount -t tmpfs tmpfs /run/sagesched && chgrp 2000 /run/sagesched && chmod 3777 /run/sagesched
mount -t tmpfs tmpfs /var/lib/sagesched && chgrp 2000 /var/lib/sagesched && chmod 2777 /var/lib/sagesched
"""
"""Of a pod with ``fsGroup`` 2000, as the kubelet leaves them: in memory with the sticky bit, on disk without."""


def test_an_image_s_user_is_the_one_of_the_manifests() -> None:
    """Both run as 2000, which owns the folders they make, and have one endpoint."""
    assert [image.name for image in IMAGES] == ["Containerfile", "Containerfile.vllm"]
    assert {value(image, "USER") for image in IMAGES} == {"2000"}
    assert len({re.findall(r"SAGESCHED_ENDPOINT=(\S+)", value(image, "ENV"))[0] for image in IMAGES}) == 1
    for image in IMAGES:
        assert "install -d -o 2000 -m 0700 /run/sagesched" in value(image, "RUN")


@pytest.mark.long
def test_the_controllers_image_is_built_and_starts_in_a_pods_volumes() -> None:
    """Its steps, then its command as its user: it answers its probe, and its history and its socket are its own."""
    image = IMAGES[0]
    command = shlex.join([*json.loads(value(image, "ENTRYPOINT")), *json.loads(value(image, "CMD"))])
    base = Path(sys.base_prefix) / "bin"
    told = in_a_copy(f"""{script(image, base)}
{VOLUMES}
export SAGESCHED_HTTP__TOKEN={"t" * 32}
cd / && {AS_USER} {command} & controller=$!
probe='import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:8700/healthz", timeout=5).status)'
for second in $(seq 60); do {AS_USER} /opt/sagesched/bin/python -c "$probe" 2>/dev/null && break || sleep 1; done
stat -c '%n %u %a' /run/sagesched/own /run/sagesched/own/engine.sock /var/lib/sagesched/history
kill $controller; wait $controller || true
""")
    assert told.split("\n")[-5:-1] == [
        "200",
        "/run/sagesched/own 2000 2700",
        "/run/sagesched/own/engine.sock 2000 600",
        "/var/lib/sagesched/history 2000 700",
    ]


@pytest.mark.long
@pytest.mark.vllm
def test_vllms_image_gets_the_adapter_and_no_other_package() -> None:
    """Its steps on an environment with vLLM: all other packages stay as they are, and its user finds the scheduler."""
    image = IMAGES[1]
    listed = f"{sys.executable} -m pip freeze --exclude-editable | grep -vi sagesched | sort"
    told = in_a_copy(f"""{sys.executable} -m pip uninstall --quiet --yes sagesched-controller
{listed} > /before
{script(image, Path(sys.executable).parent)}
{listed} > /after
cmp /before /after
stat -c '%n %u %a' /run/sagesched /home/vllm/.cache/huggingface
cd / && {AS_USER} {sys.executable} -P -c 'import engine_adapter.hints; import store as ours; print(ours.__file__)'
""")
    *_, run, cache, where = told.splitlines()
    assert (run, cache) == ("/run/sagesched 2000 700", "/home/vllm/.cache/huggingface 2000 700")
    assert "site-packages/store" in where


@pytest.mark.long
@pytest.mark.vllm
def test_vllm_and_the_controller_of_a_pod_meet_under_the_pods_name() -> None:
    """Real vLLM on the CPU, as user 2000 and in the volumes of kubernetes.yaml, is connected under that name."""
    image, python = IMAGES[1], sys.executable
    server = server_environment({"SAGESCHED_ENGINE_ID": "vllm-7d9c-x2x4z", "HOME": "/home/vllm"})
    engine = shlex.join(
        [
            *("env", *(f"{name}={each}" for name, each in server.items())),
            *(python, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", "/model", "--port", "8000"),
            *("--load-format", "dummy", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"),
            *("--scheduler-cls", "engine_adapter.vllm_scheduler.SageScheduler"),
        ]
    )
    ask = f"""
import json, time, urllib.request
end_s = time.monotonic() + 400
engines = []
while not engines and time.monotonic() < end_s:
    time.sleep(1)
    try:
        request = urllib.request.Request("http://127.0.0.1:8700/api/state", headers={{"Authorization": "Bearer {"t" * 32}"}})
        engines = json.load(urllib.request.urlopen(request, timeout=5))["engines"]
    except OSError:
        pass
print([(engine["engine_id"], engine["connected"]) for engine in engines])
"""
    told = in_a_copy(f"""{script(image, Path(python).parent)}
mkdir -p /var/lib/sagesched
{VOLUMES}
{python} -P -c 'from pathlib import Path; from engine_adapter.serving.tiny_model import *; make_tiny_model(Path("/model"))'
export SAGESCHED_HTTP__TOKEN={"t" * 32}
cd /
{AS_USER} {engine} > /engine.log 2>&1 &
{AS_USER} {python} -P -m controller serve --store /var/lib/sagesched/history --host 0.0.0.0 > /controller.log 2>&1 &
{python} -c {shlex.quote(ask)}
grep -ho 'SageSched .*' /engine.log || tail -n 40 /engine.log /controller.log
""")
    assert "[('vllm-7d9c-x2x4z', True)]" in told, told
    assert "could not start" not in told, told
