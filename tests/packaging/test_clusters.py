"""The manifests for Kubernetes, and the values for others' charts, are valid and fit together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml

from controller.api.limits import PROBES
from controller.config import load_config

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
RELEASES = ("1.29", "1.37")
"""The first Kubernetes in which an init container may go on running, and the newest that the schemas have."""

CHARTS = {
    "servingEngineSpec": {"securityContext", "modelSpec"},
    "modelSpec": {
        "name",
        "repository",
        "tag",
        "modelURL",
        "replicaCount",
        "requestCPU",
        "requestMemory",
        "requestGPU",
        "vllmConfig",
        "env",
        "extraVolumes",
        "extraVolumeMounts",
    },
    "vllmConfig": {"enablePrefixCaching", "extraArgs"},
    "decode": {"extraConfig", "initContainers", "containers", "volumes"},
    "LLMInferenceService": {"model", "replicas", "router", "template"},
}
"""What our values use of the charts' own keys; all stand in the charts that the heads of the files name."""
CHART_ONLY = {"modelCommand", "mountModelVolume"}
"""Keys of llm-d's containers that its chart turns into Kubernetes' own."""

Manifest = dict[str, Any]


def read(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def pods() -> dict[str, Manifest]:
    """The pod of every file, as its chart would put it together of what the file says."""
    [stack] = read("production-stack-values.yaml")
    [model] = stack["servingEngineSpec"]["modelSpec"]
    vllm = {
        "name": "vllm",
        "image": f"{model['repository']}:{model['tag']}",
        "args": model["vllmConfig"]["extraArgs"],
        "env": model["env"],
        "volumeMounts": model["extraVolumeMounts"],
    }
    [llm_d] = read("llm-d-values.yaml")
    decode = llm_d["decode"]
    containers = [{key: container[key] for key in container.keys() - CHART_ONLY} for container in decode["containers"]]
    [kserve] = read("kserve.yaml")
    own = {each["kind"]: each for each in read("kubernetes.yaml")}
    shared = {each["kind"]: each for each in read("kubernetes-controller.yaml")}
    return {
        "kubernetes": own["Deployment"]["spec"]["template"]["spec"],
        "kubernetes-controller": shared["Deployment"]["spec"]["template"]["spec"],
        "production-stack": {
            "securityContext": stack["servingEngineSpec"]["securityContext"],
            "containers": [vllm],
            "volumes": model["extraVolumes"],
        },
        "llm-d": {
            **decode["extraConfig"],
            "initContainers": decode["initContainers"],
            "containers": containers,
            "volumes": decode["volumes"],
        },
        "kserve": kserve["spec"]["template"],
    }


PODS = pods()
BESIDE = [name for name in PODS if name in {"kubernetes", "llm-d", "kserve"}]
"""Pods with the controller beside vLLM."""


def containers(pod: Manifest) -> Iterator[Manifest]:
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def environment(container: Manifest) -> dict[str, str]:
    """What a container is given, with something in place of what comes from elsewhere."""
    return {each["name"]: each.get("value", each["name"].ljust(64, "s")) for each in container["env"]}


def engine_of(pod: Manifest) -> Manifest | None:
    found = [each for each in containers(pod) if "sagesched-vllm" in each["image"]]
    assert len(found) <= 1
    return found[0] if found else None


def controller_of(pod: Manifest) -> Manifest | None:
    found = [each for each in containers(pod) if each.get("args", [""])[0] == "serve"]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("release", RELEASES)
def test_kubernetes_own_kinds_keep_to_its_schemas(release: str) -> None:
    """Strictly: a key that is none is refused."""
    manifests = [*read("kubernetes.yaml"), *read("kubernetes-controller.yaml")]
    assert [each["kind"] for each in manifests].count("Deployment") == 2
    for manifest in manifests:
        assert kubernetes_validate.validate(manifest, release, strict=True) == release
    manifests[1]["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(manifests[1], release, strict=True)


@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize("release", RELEASES)
def test_every_pod_keeps_to_kubernetes_schema(pod: str, release: str) -> None:
    """Also those that a chart puts together: container, environment, probes, volumes."""
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": PODS[pod]}
    assert kubernetes_validate.validate(manifest, release, strict=True) == release


def test_values_use_keys_that_the_charts_have() -> None:
    """Those that were read in the charts; a chart passes over others in silence."""
    [stack], [llm_d], [kserve] = (
        read(f"{name}.yaml") for name in ("production-stack-values", "llm-d-values", "kserve")
    )
    [model] = stack["servingEngineSpec"]["modelSpec"]
    used = {
        "servingEngineSpec": stack["servingEngineSpec"],
        "modelSpec": model,
        "vllmConfig": model["vllmConfig"],
        "decode": llm_d["decode"],
        kserve["kind"]: kserve["spec"],
    }
    assert {name: set(keys) for name, keys in used.items()} == CHARTS
    assert (kserve["apiVersion"], stack.keys(), llm_d.keys()) == (
        "serving.kserve.io/v1alpha2",
        {"servingEngineSpec"},
        {"decode"},
    )


@pytest.mark.parametrize("pod", PODS)
def test_what_runs_in_a_pod_is_what_we_have(pod: str, check_command: Callable[[list[str]], None]) -> None:
    """Commands and settings are ours; volumes that are mounted are there; the engine has its pod's name."""
    volumes = {each["name"] for each in PODS[pod]["volumes"]}
    for container in containers(PODS[pod]):
        assert {each["name"] for each in container["volumeMounts"]} <= volumes
        if "sagesched-vllm" not in container["image"]:
            check_command(container["args"])
        load_config(environment=environment(container))
    engine = engine_of(PODS[pod])
    if engine is not None:
        [name] = [each for each in engine["env"] if each["name"] == "SAGESCHED_ENGINE_ID"]
        assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        said = " ".join([*engine.get("args", ()), *environment(engine).values()])
        assert "--scheduler-cls engine_adapter.vllm_scheduler.SageScheduler" in said


@pytest.mark.parametrize("pod", BESIDE)
def test_engine_and_controller_meet_in_a_folder_that_is_safe(pod: str) -> None:
    """One user, one socket, in a folder of its own below a volume in memory, which the kubelet makes with the sticky bit."""
    engine, controller = engine_of(PODS[pod]), controller_of(PODS[pod])
    assert engine is not None
    assert controller is not None
    [endpoint] = {environment(each)["SAGESCHED_ENDPOINT"] for each in (engine, controller)}
    mount = str(PurePosixPath(endpoint.removeprefix("ipc://")).parents[1])
    [volume] = {
        each["name"] for both in (engine, controller) for each in both["volumeMounts"] if each["mountPath"] == mount
    }
    [source] = [each for each in PODS[pod]["volumes"] if each["name"] == volume]
    assert source["emptyDir"]["medium"] == "Memory"
    assert PODS[pod]["securityContext"]["runAsUser"] == 2000
    assert not any("runAsUser" in each.get("securityContext", {}) for each in (engine, controller))


@pytest.mark.parametrize("pod", [name for name in PODS if controller_of(PODS[name])])
def test_the_history_lies_below_its_volume(pod: str) -> None:
    """The volume's own folder is root's; and probes and ports are the API's."""
    controller = controller_of(PODS[pod])
    assert controller is not None
    words = controller["args"]
    store = PurePosixPath(words[words.index("--store") + 1])
    assert str(store.parent) in {each["mountPath"] for each in controller["volumeMounts"]}
    assert words[words.index("--host") + 1] == "0.0.0.0"
    ports = {each["name"]: each["containerPort"] for each in controller["ports"]}
    probes = [controller[name]["httpGet"] for name in controller if name.endswith("Probe")]
    assert {each["path"] for each in probes} <= PROBES
    assert {ports[each["port"]] for each in probes} == {8700}
    assert ("readinessProbe" in controller) is (pod not in BESIDE), "beside vLLM it would take requests away"


@pytest.mark.parametrize("pod", ["kubernetes", "kubernetes-controller"])
def test_no_service_sets_variables_of_vllm_or_of_ours(pod: str) -> None:
    """Kubernetes makes VLLM_PORT of a Service `vllm`, which vLLM takes for a setting of its own."""
    assert PODS[pod]["enableServiceLinks"] is False
    services = {each["metadata"]["name"] for each in read(f"{pod}.yaml") if each["kind"] == "Service"}
    assert "vllm" not in services


def test_production_stack_reports_to_the_shared_controller() -> None:
    """The Service's name and port, a key file that the Secret's mount holds, and the port that the controller listens on."""
    engine, controller = engine_of(PODS["production-stack"]), controller_of(PODS["kubernetes-controller"])
    assert engine is not None
    assert controller is not None
    [service] = [each for each in read("kubernetes-controller.yaml") if each["kind"] == "Service"]
    ports = {each["targetPort"]: each["port"] for each in service["spec"]["ports"]}
    listens = {each["name"]: each["containerPort"] for each in controller["ports"]}
    given = environment(engine)
    assert given["SAGESCHED_ENDPOINT"] == f"tcp://{service['metadata']['name']}:{ports['engines']}"
    assert controller["args"][-2:] == ["--endpoint", f"tcp://0.0.0.0:{listens['engines']}"]
    head = (DEPLOY / "kubernetes-controller.yaml").read_text().split("apiVersion", 1)[0]
    secrets = dict(re.findall(r"create secret generic (\S+) (--from-file=.+)", head))
    [volume] = PODS["production-stack"]["volumes"]
    [mount] = engine["volumeMounts"]
    key = PurePosixPath(given["SAGESCHED_KEY_FILE"])
    assert f"--from-file={key.name}=" in secrets[volume["secret"]["secretName"]]
    assert mount["mountPath"] == str(key.parent)
    [keys] = [each for each in PODS["kubernetes-controller"]["volumes"] if "secret" in each]
    assert re.findall(r"keys/(\S+)", secrets[keys["secret"]["secretName"]]) == ["controller.key", "authorized_engines"]


def test_what_is_scraped_is_there_and_counted_once() -> None:
    """Monitors select pods and ports of the manifest, with its token, and the autoscaler asks for the job they give."""
    service, deployment = read("kubernetes.yaml")
    by_service, by_pod = read("kubernetes-monitoring.yaml")
    assert service["metadata"]["labels"].items() >= by_service["spec"]["selector"]["matchLabels"].items()
    assert {each["port"] for each in by_service["spec"]["endpoints"]} == {
        each["name"] for each in service["spec"]["ports"]
    }
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"].items() >= by_pod["spec"]["selector"]["matchLabels"].items()
    [scrape] = by_pod["spec"]["podMetricsEndpoints"]
    controller = controller_of(template["spec"])
    assert controller is not None
    assert {each["name"] for each in controller["ports"]} == {scrape["port"]}
    [read_token] = [each for each in controller["env"] if each["name"] == "SAGESCHED_HTTP__READ_TOKEN"]
    assert scrape["authorization"]["credentials"] == read_token["valueFrom"]["secretKeyRef"]
    [keda] = read("keda-scaledobject.yaml")
    job = {each["targetLabel"]: each["replacement"] for each in scrape["relabelings"]}["job"]
    assert f'job="{job}"' in keda["spec"]["triggers"][0]["metadata"]["query"]
    assert keda["spec"]["scaleTargetRef"] == {"kind": "Deployment", "name": deployment["metadata"]["name"]}
