"""The files under clusters/ are valid, and say what the code assumes."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from spark.session import DEFAULTS, parse_settings

CLUSTERS = Path(__file__).parents[2] / "clusters"
AWS_FILE = CLUSTERS / "ray" / "aws.yaml"


@pytest.fixture
def aws() -> dict[str, Any]:
    return yaml.safe_load(AWS_FILE.read_text())


def validate_as_ray_up_does(config: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_aws_config_passes_rays_own_validation(aws):
    prepared = validate_as_ray_up_does(aws)
    assert prepared["worker_setup_commands"] == aws["setup_commands"]
    assert prepared["head_setup_commands"] == aws["setup_commands"] + aws["head_setup_commands"]


def test_the_validation_sees_a_misspelled_field(aws):
    aws["available_node_types"]["worker"]["minimum_workers"] = 2
    with pytest.raises(jsonschema.ValidationError, match="minimum_workers"):
        validate_as_ray_up_does(aws)


def test_aws_config_has_one_head_and_two_workers(aws):
    types = validate_as_ray_up_does(aws)["available_node_types"]
    head = aws["head_node_type"]
    assert set(types) == {head, "worker"}
    assert (types[head]["min_workers"], types[head]["max_workers"]) == (0, 0)
    assert (types["worker"]["min_workers"], types["worker"]["max_workers"]) == (2, 2)
    assert aws["max_workers"] == 2


def test_aws_machines_get_java_and_the_wheel(aws):
    setup = "\n".join(aws["setup_commands"])
    assert "openjdk-17-jre-headless" in setup
    assert aws["file_mounts"] == {"/home/ubuntu/wheels": "dist"}
    assert "~/wheels/exoflow-*.whl" in setup
    assert aws["auth"]["ssh_user"] == "ubuntu"


def options(commands: list[str]) -> dict[str, str]:
    words = " ".join(commands).split()
    return dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)


def test_aws_ports_are_explicit_and_do_not_collide(aws):
    head, worker = options(aws["head_start_ray_commands"]), options(aws["worker_start_ray_commands"])
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    everywhere = ["object-manager-port", "node-manager-port", "metrics-export-port"]
    workers = ["min-worker-port", "max-worker-port"]
    for name in everywhere + workers:
        assert head[name] == worker[name]
    single = [int(head[name]) for name in [*everywhere, "port", "ray-client-server-port", "dashboard-port"]]
    assert len(set(single)) == len(single)
    assert not [port for port in single if int(head[workers[0]]) <= port <= int(head[workers[1]])]


def test_built_in_spark_settings_are_those_of_the_file():
    text = (CLUSTERS / "spark" / "spark-defaults.conf").read_text()
    assert parse_settings(text) == dict(DEFAULTS)


def test_readme_names_every_file():
    readme = (CLUSTERS / "README.md").read_text()
    files = [path.relative_to(CLUSTERS) for path in CLUSTERS.rglob("*") if path.is_file()]
    assert len(files) > 1
    assert not [str(file) for file in files if file.name != "README.md" and f"`{file}`" not in readme]
