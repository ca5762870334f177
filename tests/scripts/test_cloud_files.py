"""The files for Google Cloud and KubeRay, held against the APIs that read them: offline, by these APIs' own schemas."""

import json
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import pytest
import yaml
from googleapiclient import discovery
from googleapiclient.http import HttpMockSequence

from sweep.__main__ import main
from sweep.base import code_version
from sweep.base.config import ROOT, Cluster
from sweep.base.options import ConfigPath
from sweep.cluster import ray_executor

FILES = ROOT / "scripts" / "cluster"
SCALARS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": Mapping}


# Google Cloud --------------------------------------------------------------------------------------------------------


def mismatches(value: Any, schema: Mapping[str, Any], schemas: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield how a value differs from its schema in a discovery document of Google's."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kind = int if schema.get("format") in ("int64", "uint64") else SCALARS.get(schema["type"], list)
    if not isinstance(value, kind) and not (kind is int and isinstance(value, str) and value.isdecimal()):
        yield f"{path}: {value!r} is no {schema['type']}"
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from mismatches(each, schema["items"], schemas, f"{path}[{index}]")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            field = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if field is None:
                yield f"{path}: there is no {key}"
            else:
                yield from mismatches(each, field, schemas, f"{path}.{key}")
    elif value not in schema.get("enum", [value]):
        yield f"{path}: {value!r} is none of {schema['enum']}"


@pytest.fixture(scope="module")
def compute() -> dict[str, Any]:
    """The discovery document of the Compute Engine API, as it ships with Google's client."""
    document = files("googleapiclient") / "discovery_cache" / "documents" / "compute.v1.json"
    return json.loads(document.read_text())


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((FILES / "gcp-l4.yaml").read_text())


def test_the_check_refuses_what_the_api_refuses(compute):
    """The faults that the file had, and unknown names."""
    check = lambda value: list(mismatches(value, {"$ref": "Instance"}, compute["schemas"], "instance"))  # noqa: E731
    assert check({"scheduling": [{"onHostMaintenance": "TERMINATE"}]}) == [
        "instance.scheduling: [{'onHostMaintenance': 'TERMINATE'}] is no object"
    ]
    assert check({"scheduling": {"provisioningModel": "CHEAP"}})
    assert check({"disks": [{"initializeParams": {"type": "pd-balanced"}}]})
    assert not check({"disks": [{"boot": True, "initializeParams": {"diskSizeGb": 200}}]})


@pytest.mark.parametrize("node_type", ["head", "l4", "l4x4"])
def test_what_rays_launcher_sends_is_an_instance_of_the_api(cluster, compute, node_type, monkeypatch):
    """By Ray's own code and Google's own client: the request that would start a node."""
    from ray.autoscaler._private.gcp import node

    http = HttpMockSequence([({"status": "200"}, json.dumps({"name": "operation", "status": "DONE"}))])
    client = discovery.build_from_document(compute, http=http)
    zone = cluster["provider"]["availability_zone"]
    launcher = node.GCPCompute(client, "a-project", zone, "sweep")
    monkeypatch.setattr(launcher, "get_new_authorized_http", lambda http: http)
    config = cluster["available_node_types"][node_type]["node_config"]
    labels = {"ray-node-type": "worker", "ray-node-name": "ray-sweep-worker", "ray-node-uuid": "abcdefgh"}
    launcher.create_instance(config, labels, wait_for_operation=False)
    ((url, method, body, _),) = http.request_sequence
    assert (method, f"/zones/{zone}/instances" in url) == ("POST", True)
    instance = json.loads(body)
    assert list(mismatches(instance, {"$ref": "Instance"}, compute["schemas"], node_type)) == []
    (disk,) = instance["disks"]
    assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced", "G2 takes no pd-standard"
    assert instance["machineType"].startswith(f"zones/{zone}/machineTypes/")


def test_the_spot_variant_is_valid_too(cluster, compute):
    """The line in the file's comment."""
    (line,) = [line for line in (FILES / "gcp-l4.yaml").read_text().splitlines() if "# scheduling:" in line]
    scheduling = yaml.safe_load(line.partition("#")[2])["scheduling"]
    assert scheduling["provisioningModel"] == "SPOT"
    assert list(mismatches(scheduling, {"$ref": "Scheduling"}, compute["schemas"], "scheduling")) == []


def test_the_head_has_the_client_that_starts_its_nodes(cluster):
    assert any("scripts/setup '.[gcp]'" in command for command in cluster["setup_commands"])


# Drivers -------------------------------------------------------------------------------------------------------------


EXPERIMENTS = ConfigPath().choices("experiment")


def drivers(name: str, monkeypatch) -> set[str]:
    """The drivers of the GPU nodes that a file would start, as a plan reads them before there are any."""
    node_types = None
    if name == "kuberay-rayjob.yaml":
        words = shlex.split(yaml.safe_load((FILES / name).read_text())["spec"]["entrypoint"])
        (types,) = (word for word in words if word.startswith("cluster.node_types="))
        node_types = yaml.safe_load(types.partition("=")[2])
    monkeypatch.setattr(ray_executor, "LAUNCHER_CONFIG", FILES / name)
    nodes = ray_executor.startable_nodes(Cluster(name="ray", kind="ray", node_types=node_types))
    assert [node for node in nodes if node.gpus]
    return {node.facts.driver for node in nodes if node.gpus}


def refused_for_the_driver(experiment: str, driver: str, capsys) -> list[str]:
    """The lines of a dry run on nodes with this driver that say that an engine cannot run with it."""
    nodes = f"cluster.simulate={{nodes: 1, gpus: 4, driver: '{driver}', capability: '8.9'}}"
    main(["run", f"+experiment={experiment}", "hardware=l4", "dry_run=true", "tracking=none", nodes])
    output = capsys.readouterr().out
    assert f"plan {experiment}: " in output
    return [line for line in output.splitlines() if line.startswith("unavailable: ") and "driver" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gcp-l4.yaml", "kuberay-rayjob.yaml"])
def test_a_clusters_nodes_have_a_driver_for_every_backend_of_the_experiments(name, monkeypatch, capsys):
    (driver,) = drivers(name, monkeypatch)
    refused = {experiment: refused_for_the_driver(experiment, driver, capsys) for experiment in EXPERIMENTS}
    assert not {experiment: lines for experiment, lines in refused.items() if lines}


def test_an_older_driver_is_refused_before_a_node_has_started(capsys):
    """The file had 570 once, and vllm was unavailable on it."""
    lines = refused_for_the_driver("throughput_bound", "570", capsys)
    assert [line.split()[1] for line in lines] == ["vllm"]


# KubeRay -------------------------------------------------------------------------------------------------------------


FIELDS = yaml.safe_load((ROOT / "tests" / "support" / "kubernetes_fields.yaml").read_text())


def faults(value: Any, kind: str, path: str) -> Iterator[str]:
    """Yield how a value differs from its type in kubernetes_fields.yaml."""
    if kind.endswith("[]"):
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
            return
        for index, each in enumerate(value):
            yield from faults(each, kind.removesuffix("[]"), f"{path}[{index}]")
    elif kind in FIELDS["types"] or kind == "map":
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no object"
            return
        for key, each in value.items():
            field = "string" if kind == "map" else FIELDS["types"][kind].get(key)
            if field is None:
                yield f"{path}: there is no {key} in {kind}"
            else:
                yield from faults(each, field, f"{path}.{key}")
    elif kind in SCALARS:
        if not isinstance(value, SCALARS[kind]) or (isinstance(value, bool) and kind != "boolean"):
            yield f"{path}: {value!r} is no {kind}"
    elif value not in kind.split(" | "):
        yield f"{path}: {value!r} is not {kind}"


@pytest.mark.parametrize("name", sorted(FIELDS["files"]))
def test_the_fields_of_a_manifest_are_those_of_its_version(name):
    manifest = yaml.safe_load((FILES / name).read_text())
    assert manifest["kind"] == FIELDS["files"][name]
    assert list(faults(manifest, manifest["kind"], name)) == []


def test_the_check_refuses_what_kubernetes_refuses():
    assert list(faults({"rayStartParams": {"num-cpus": 0}}, "HeadGroupSpec", "head"))
    assert list(faults({"replicas": "1", "workers": 1}, "WorkerGroupSpec", "group")) == [
        "group.replicas: '1' is no integer",
        "group: there is no workers in WorkerGroupSpec",
    ]
    assert list(faults({"version": "v3"}, "AutoscalerOptions", "options"))


def test_the_cache_outlives_the_pods():
    """Every pod mounts the claim, which is no part of the job."""
    claim = yaml.safe_load((FILES / "kuberay-cache.yaml").read_text())
    job = yaml.safe_load((FILES / "kuberay-rayjob.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        (volume,) = [each for each in spec["volumes"] if each["name"] == "cache"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        for container in spec["containers"]:
            mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
            environ = {each["name"]: each["value"] for each in container["env"]}
            assert environ["XDG_CACHE_HOME"] == mounts["cache"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_what_git_ignores_stays_out_of_the_image():
    """And so do its history and secrets."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = {line.removeprefix("**/").strip("/") for line in lines if line and not line.startswith("#")}
    of_git = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line}
    assert of_git | {".git", ".sweep-env"} <= patterns


def test_the_commit_of_an_image_is_the_one_it_was_built_with(tmp_path, monkeypatch):
    """Its history stays outside, so a build argument tells."""
    assert "ENV PATH=/sweep/.venv/bin:$PATH SWEEP_COMMIT=$COMMIT" in (FILES / "Dockerfile").read_text()
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    monkeypatch.setenv("SWEEP_COMMIT", "0123456789ab+")
    commit = code_version.commit.__wrapped__
    assert commit() == "0123456789ab+"
    monkeypatch.setenv("SWEEP_COMMIT", "")
    assert commit() is None


@pytest.mark.parametrize(
    ("commit", "place", "status", "known"),
    [
        ("0123456789ab", ".git", "", True),
        ("0123456789ab", ".git", "?? sweep/numbers/quantities/own.py\n", False),
        ("0123456789ab", ".git", None, False),
        ("0123456789ab", "pyproject.toml", "", True),
        ("0123456789ab+", "pyproject.toml", "", False),
        (None, "pyproject.toml", "", False),
        (None, "an installed wheel", "", True),
    ],
)
def test_a_program_is_known_by_its_commit_or_as_installed(tmp_path, monkeypatch, commit, place, status, known):
    (tmp_path / place).touch()
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    monkeypatch.setattr(code_version, "commit", lambda: commit)
    monkeypatch.setattr(code_version, "changed_files", lambda: status)
    assert (code_version.program_version() is not None) == known
