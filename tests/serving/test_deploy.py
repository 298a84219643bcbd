"""The files of deploy/ agree with each other and with the server."""

import argparse
import re
from pathlib import Path

import pytest
import yaml

from fuxictr_mm.serving.pair_sizes import NUMBERS_OF_USER
from fuxictr_mm_serving import __version__, command
from fuxictr_mm_serving.hosts import is_expected
from fuxictr_mm_serving.requests import ROUTES
from tests.paths import ROOT

PATHS = {path for _, path, *_ in ROUTES}


@pytest.fixture(scope="module")
def manifest():
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    for document in documents:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])
    return {document["kind"]: document for document in documents}


def entrypoint():
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    program, *arguments = yaml.safe_load(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1])
    assert program == "fuxictr-mm-serve"
    return arguments


def test_a_container_without_arguments_refuses_names_of_others():
    """The port may be published on the loopback of the host, where web pages reach it by DNS rebinding."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    names = parser.parse_args([*entrypoint(), *yaml.safe_load(re.search(r"^CMD (.*)$", text, re.M)[1])]).allow_host
    called = ("rebound.example:8000", "localhost:8000", "127.0.0.1:8000")
    assert [is_expected(header, names) for header in called] == [False, True, True]


def test_labels_and_ports_fit(manifest):
    assert {kind: one["apiVersion"] for kind, one in manifest.items()} == {
        "Deployment": "apps/v1",
        "Service": "v1",
        "HorizontalPodAutoscaler": "autoscaling/v2",
    }
    spec = manifest["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert manifest["Service"]["spec"]["selector"].items() <= labels.items()
    (container,) = spec["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert [port["targetPort"] for port in manifest["Service"]["spec"]["ports"]] == list(ports)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
        assert container[probe]["httpGet"]["path"] in PATHS
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["image"].endswith(f":{__version__}")
    scaler = manifest["HorizontalPodAutoscaler"]["spec"]
    named = scaler["scaleTargetRef"]
    assert (named["kind"], named["name"]) == ("Deployment", manifest["Deployment"]["metadata"]["name"])
    # Utilization is that of the requested CPU.
    assert scaler["metrics"][0]["resource"]["name"] in container["resources"]["requests"]
    assert scaler["minReplicas"] < scaler["maxReplicas"]
    assert "replicas" not in spec


def test_the_server_takes_the_arguments(manifest):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    (container,) = manifest["Deployment"]["spec"]["template"]["spec"]["containers"]
    found = parser.parse_args([*entrypoint(), *container["args"]])
    assert found.host == "0.0.0.0"
    assert found.port == container["ports"][0]["containerPort"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    # Not the export itself: a folder that is a mount cannot be replaced by a rename.
    assert mounts[str(Path(found.export).parent)]["readOnly"]
    volumes = {volume["name"] for volume in manifest["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == volumes
    assert "FUXICTR_MM_TOKEN" in {variable["name"] for variable in container["env"]}


def test_the_longest_histories_fit_the_memory(manifest):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    (container,) = manifest["Deployment"]["spec"]["template"]["spec"]["containers"]
    found = parser.parse_args([*entrypoint(), *container["args"]])
    of_request = 4 * NUMBERS_OF_USER * 4 / 2**20  # four arrays of 4 bytes
    assert found.concurrency * of_request + found.cache_mib < int(container["resources"]["limits"]["memory"][:-2])


def test_the_folder_that_holds_the_export_is_mounted():
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    served = Path(parser.parse_args(entrypoint()).export)
    (outside, inside) = re.search(r'-v "\$PWD/(\w+):(\S+):ro"', text).groups()
    assert inside == str(served.parent)
    assert f"--out {outside}/{served.name}" in text


def test_nothing_runs_as_root_or_writes(manifest):
    pod = manifest["Deployment"]["spec"]["template"]["spec"]
    uid = re.search(r"--uid (\d+)", (ROOT / "deploy" / "Dockerfile").read_text())[1]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == int(uid)
    assert not pod["automountServiceAccountToken"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
