"""cluster.yaml and conf/kuberay/ before anybody pays: Ray's own schema, a pretended AWS, and sense."""

import copy
import os
import re
import shlex
import shutil
import subprocess
import tomllib

import boto3
import pytest
import yaml
from moto import mock_aws
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from support import ROOT

from pipelines.cluster.machines import grown, num_fit
from pipelines.run import CLI
from vopcore.config import ConfigError, read_config
from vopcore.config.sections import Resources

REGION = "us-east-1"
ONLY_CLOUD = ("available_node_types", "head_node_type", "max_workers")


@pytest.fixture
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def valid(cluster: dict) -> dict:
    """As `ray up` takes it in: with Ray's defaults, checked against Ray's schema."""
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_takes_it_and_notices_a_typo(cluster):
    valid(cluster)
    cluster["max_wrkers"] = 3
    with pytest.raises(Exception, match="max_wrkers"):
        valid(cluster)


def test_machines_of_your_own_take_another_provider_and_no_node_types(cluster):
    own = {
        name: value
        for name, value in cluster.items()
        if name not in ("available_node_types", "head_node_type")
    }
    del own["max_workers"]
    own["provider"] = {"type": "local", "head_ip": "192.0.2.1", "worker_ips": ["192.0.2.2", "192.0.2.3"]}
    prepared = valid(own)
    (kind,) = prepared["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"]) == (2, 2)


def test_the_head_does_no_work_and_the_others_come_and_go(cluster):
    kinds = valid(cluster)["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert all(kind.get("min_workers", 0) == 0 for kind in kinds.values())
    assert (
        sum(kind["max_workers"] for name, kind in kinds.items() if name != "head") <= cluster["max_workers"]
    )


@pytest.fixture
def aws(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    with mock_aws():
        # what conf/aws_role.sh leaves behind
        for name in ("vopcore-head", "vopcore-worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=name)
        ec2 = boto3.client("ec2")
        (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        group = ec2.create_security_group(GroupName="vopcore", Description="Ray", VpcId=vpc["VpcId"])[
            "GroupId"
        ]
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.5/32"}]}
        inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, inside])
        yield


def test_aws_would_start_each_kind_of_machine_and_lets_in_only_ssh(cluster, aws, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray leaves a key there
    (tmp_path / ".ssh").mkdir()
    ready = AWSNodeProvider.fillout_available_node_types_resources(bootstrap_aws(valid(cluster)))
    kinds = ready["available_node_types"]
    assert {name: kind["resources"].get("GPU", 0) for name, kind in kinds.items()} == {
        "head": 0,
        "decode": 0,
        "tune": 1,
        "tune_on_demand": 1,
    }
    assert kinds["decode"]["resources"]["CPU"] == 16
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(ready))  # as `ray up` does on the head
    assert grown() == []
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert num_fit(grown(), Resources(gpu=True, cpus_per_worker=8)) == 4
    assert sum(machine["CPU"] for machine in grown()) == 8 * 16 + 4 * 8

    provider = AWSNodeProvider(ready["provider"], "vopcore")
    for kind in kinds.values():
        provider.create_node(kind["node_config"], {"ray-node-type": "worker"}, 1)
    ec2 = boto3.client("ec2")
    started = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    assert [(i["InstanceType"], i.get("InstanceLifecycle", "on demand")) for i in started] == [
        ("m6i.xlarge", "on demand"),
        ("c6i.4xlarge", "spot"),
        ("g5.2xlarge", "spot"),
        ("g5.2xlarge", "on demand"),
    ]
    profiles = [i["IamInstanceProfile"]["Arn"].rsplit("/")[-1] for i in started]
    assert profiles == ["vopcore-head", "vopcore-worker", "vopcore-worker", "vopcore-worker"]
    assert all([group["GroupName"] for group in i["SecurityGroups"]] == ["vopcore"] for i in started)

    # Ray leaves the group's own rules alone: SSH from one address, and nothing else from outside
    (group,) = [g for g in ec2.describe_security_groups()["SecurityGroups"] if g["GroupName"] != "default"]
    from_outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["FromPort"], rule["ToPort"], rule["IpRanges"]) for rule in from_outside] == [
        (22, 22, [{"CidrIp": "203.0.113.5/32"}])
    ]


def test_machines_keep_their_disks_encrypted_and_give_keys_to_no_bare_request(cluster):
    for kind in cluster["available_node_types"].values():
        node = kind["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(mapping["Ebs"]["Encrypted"] for mapping in node["BlockDeviceMappings"])


def test_every_machine_installs_the_locked_versions_and_only_gpu_machines_cuda(cluster):
    decode = cluster["available_node_types"]["decode"]["worker_setup_commands"]
    installs = [*cluster["head_setup_commands"], *decode, *cluster["worker_setup_commands"]]
    assert all("-c ~/vopcore/conf/constraints.txt -e ~/vopcore" in command for command in installs)
    assert ["--torch-backend cpu" in command for command in installs] == [True, True, False]


def test_the_docker_section_that_the_comments_hold_is_one_that_ray_takes(cluster):
    text = (ROOT / "cluster.yaml").read_text()
    (line,) = re.findall(r"^# (docker: \{.*\})$", text, re.MULTILINE)
    valid(cluster | yaml.safe_load(line))


def test_the_lock_has_a_version_for_everything_that_pyproject_asks_for_and_one_that_it_takes():
    lines = (ROOT / "conf/constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    locked = [*extras["test"], *extras["aws"], *extras["search"], *extras["multilingual"]]
    for text in (*project["dependencies"], *locked):
        requirement = Requirement(text)
        if requirement.name == "vopcore":
            continue
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text}: conf/constraints.sh renews {version}"


def test_the_images_bring_the_ray_that_is_locked():
    pinned = re.search(r"^ray==(.*)$", (ROOT / "conf/constraints.txt").read_text(), re.MULTILINE)[1]
    dockerfile = (ROOT / "conf/kuberay/Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned}-py312\n" in dockerfile
    assert (
        yaml.safe_load((ROOT / "conf/kuberay/raycluster.yaml").read_text().split("\n---")[0])["spec"][
            "rayVersion"
        ]
        == pinned
    )


def test_the_role_script_says_how_it_is_called_and_which_command_it_needs(tmp_path):
    script = ROOT / "conf/aws_role.sh"
    bare = subprocess.run([script], capture_output=True, text=True, check=False)
    assert (bare.returncode, bare.stdout) == (2, "")
    assert "conf/aws_role.sh BUCKET ADDRESS [PREFIX]" in bare.stderr
    for name in ("bash", "dirname", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name))
    call = [script, "my-bucket", "203.0.113.5"]
    without = subprocess.run(call, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert without.returncode == 2
    assert "the aws command is not here" in without.stderr


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_knows_every_option_and_runs_in_the_checkout(cluster, commands):
    last = cluster[commands][-1]
    assert last.startswith("ulimit -n 65536; cd ~/vopcore && PATH=~/venv/bin:$PATH RAY_AUTH_MODE=token ")
    options = shlex.split(last.split(" ray start ")[1])
    start.make_context("start", options)


def test_the_dashboard_listens_on_loopback_only(cluster):
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_every_command_is_one_that_bash_can_read(cluster):
    for commands in (
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ):
        for command in cluster[commands]:
            subprocess.run(["bash", "-n", "-c", command], check=True)
    for script in ("aws_role.sh", "constraints.sh", "slurm/run.sbatch"):
        subprocess.run(["bash", "-n", ROOT / "conf" / script], check=True)
    assert os.access(ROOT / "conf/aws_role.sh", os.X_OK)
    assert os.access(ROOT / "conf/constraints.sh", os.X_OK)


@pytest.fixture
def kubernetes():
    files = [ROOT / "conf/kuberay" / name for name in ("raycluster.yaml", "rayjob.yaml")]
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text())]
    return {(d["kind"], d["metadata"]["name"]): d for d in documents}


def test_kubernetes_gets_the_same_cluster(cluster, kubernetes):
    spec = kubernetes["RayCluster", "vopcore"]["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    kinds = valid(cluster)["available_node_types"]
    for group in spec["workerGroupSpecs"]:
        assert (group["minReplicas"], group["maxReplicas"]) == (0, kinds[group["groupName"]]["max_workers"])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # the API wants text
    images = [container["image"] for pod in pods(spec) for container in pod["containers"]]
    assert images == ["REGISTRY/vopcore:cpu", "REGISTRY/vopcore:cpu", "REGISTRY/vopcore:gpu"]


def pods(spec: dict) -> list[dict]:
    return [group["template"]["spec"] for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]


def test_every_volume_that_a_pod_mounts_is_there(kubernetes):
    for pod in pods(kubernetes["RayCluster", "vopcore"]["spec"]):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
        assert mounted == set(volumes)
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in kubernetes


def test_the_job_runs_on_that_cluster_and_its_line_is_read_by_run_py(kubernetes):
    spec = kubernetes["RayJob", "activitynet"]["spec"]
    assert ("RayCluster", spec["clusterSelector"]["ray.io/cluster"]) in kubernetes
    words = shlex.split(spec["entrypoint"])
    assert words[:3] == ["python", "pipelines/run.py", "conf/activitynet.yaml"]
    args = CLI.parse_args(words[2:])
    with pytest.raises(ConfigError, match=r"data.root: no such folder: .*/outputs/annotations"):
        read_config(ROOT / args.config, args.overrides)
