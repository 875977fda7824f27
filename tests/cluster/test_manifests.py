"""What runs beyond one machine, without a cluster: the launcher's file by Ray's own validation, the manifests' fields,
and what the working folder's upload holds."""

from __future__ import annotations

import copy
import re
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from flashray.pipeline.options import parse_run

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PINNED = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


@pytest.fixture
def job() -> Any:
    return load("ray_job.yaml")


@pytest.fixture
def spec() -> Any:
    return load("ray_cluster.yaml")["spec"]


def test_the_launchers_file_passes_rays_validation():
    config = load("vm.yaml")
    validate_config(prepare_config(copy.deepcopy(config)))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert any("--num-cpus=0" in command for command in config["head_start_ray_commands"])
    assert {name: "GPU" in one["resources"] for name, one in types.items()} == {
        "head": False,
        "cpu": False,
        "gpu": True,
    }
    assert all(one["min_workers"] <= one["max_workers"] for name, one in types.items() if name != "head")
    with pytest.raises(Exception, match="Additional properties"):  # the validation does look
        validate_config(prepare_config(config | {"head_node": {}, "hed_node_type": "head"}))


def test_the_manifests_say_the_same_cluster(job: Any, spec: Any):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert load("ray_cluster.yaml")["kind"] == "RayCluster"
    assert job["spec"]["rayClusterSpec"] == spec


def test_the_manifests_have_only_fields_that_kuberay_knows(job: Any, spec: Any):
    assert set(job["spec"]) <= {
        *("entrypoint", "runtimeEnvYAML", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec"),
    }
    assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode")
    assert set(spec) <= {
        *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec"),
        "workerGroupSpecs",
    }
    assert set(spec["autoscalerOptions"]) <= {"idleTimeoutSeconds", "upscalingMode"}
    assert set(spec["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in spec["workerGroupSpecs"]:
        assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_ray_is_the_pinned_one_and_the_head_has_no_tasks(spec: Any):
    assert PINNED is not None
    assert spec["rayVersion"] == PINNED[1] == version("ray")
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(isinstance(value, str) for value in spec["headGroupSpec"]["rayStartParams"].values())


def test_every_pod_has_limits_shared_memory_and_the_storages_secret(spec: Any):
    groups = {one["groupName"]: one["template"] for one in spec["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for template in (spec["headGroupSpec"]["template"], *groups.values()):
        (container,) = template["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        (volume,) = template["spec"]["volumes"]
        assert (volume["name"], volume["emptyDir"]["medium"]) == ("shm", "Memory")
        assert container["envFrom"] == [{"secretRef": {"name": "flashray-storage"}}]
        assert "env" not in container  # no secret in the file
    limits = {name: one["spec"]["containers"][0]["resources"]["limits"] for name, one in groups.items()}
    assert [name for name in limits if any(key.endswith("gpu") for key in limits[name])] == ["gpu"]
    assert groups["gpu"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_the_jobs_command_is_one_that_flashray_takes(job: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    python, script, *argv = job["spec"]["entrypoint"].split()
    assert (python, script) == ("python", "/app/jobs/reconstruct.py")
    config = parse_run([word.replace("/app/", f"{ROOT}/") for word in argv])
    assert (config.resources.device, config.resources.solver_actors) == ("cuda", 4)
    gpu = next(one for one in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if one["groupName"] == "gpu")
    assert config.resources.solver_actors <= gpu["maxReplicas"]
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == load("runtime_env.yaml")


def test_the_upload_holds_the_bundled_models_and_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `ray job submit --working-dir .` sends, made by Ray itself."""
    package = tmp_path / "working_dir.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    weights = [path.relative_to(ROOT).as_posix() for path in (ROOT / "flashray" / "assets").rglob("*.safetensors")]
    assert len(weights) >= 3
    assert set(weights) <= names
    assert {"jobs/reconstruct.py", "flashray/recipes/gaussian_blur_flash_latent_dps.yaml"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "tests/", "docs/"))]
    assert package.stat().st_size < DASHBOARD_CLIENT_MAX_SIZE  # what the dashboard accepts


def test_the_image_is_built_from_what_is_there():
    recipe = (CLUSTER / "Dockerfile").read_text()
    assert "torchvision" not in re.sub(r"#.*", "", recipe)
    copied = [word for line in re.findall(r"^COPY (.*)", recipe, re.MULTILINE) for word in line.split()[:-1]]
    assert all((ROOT / word).exists() for word in copied)
    kept = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(copied)
