"""The schedules that ship: GitHub's is what its schema wants, KubeRay's what its types want; cron's runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import ROOT

from pipelines import benchmark
from vopcore.config import read_matrix

WORKFLOW = ROOT / ".github/workflows/benchmark.yml"
MANIFEST = ROOT / "conf/kuberay/benchmark_cron.yaml"
ALLOWED = {  # of KubeRay 1.6's RayCronJob; jobTemplate is the spec of a RayJob
    "spec": {"schedule": str, "timeZone": str, "suspend": bool, "jobTemplate": dict},
    "jobTemplate": {"clusterSelector": dict, "submissionMode": str, "entrypoint": str, "backoffLimit": int},
}
RANGES = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]  # minute, hour, day, month, weekday


def is_cron(schedule: str) -> bool:
    fields = schedule.split()
    return len(fields) == 5 and all(
        field == "*" or low <= int(field) <= high for field, (low, high) in zip(fields, RANGES, strict=True)
    )


def commands(text: str) -> list[list[str]]:
    """The arguments of each `pipelines/benchmark.py` in a file."""
    found = re.findall(r"pipelines/benchmark\.py ([^\n>|]*)", text)
    return [re.sub(r"\$\{\{.*?\}\}", "", line).split() for line in found]


@pytest.mark.parametrize("file", [WORKFLOW, MANIFEST, ROOT / "conf/README.md"], ids=lambda file: file.name)
def test_every_command_of_a_schedule_names_a_benchmark_that_ships(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    shipped = [argv for argv in commands(file.read_text()) if argv and argv[0].endswith(".yaml")]
    assert shipped
    for argv in shipped:
        if "FILE" not in argv[0]:
            assert read_matrix(benchmark.CLI.parse_intermixed_args(argv[:1]).matrix).tables


def test_githubs_schedule_is_what_its_schema_wants():
    check = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema"]
    done = subprocess.run([*check, "vendor.github-workflows", WORKFLOW], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    said = yaml.load(WORKFLOW.read_text(), yaml.BaseLoader)  # else `on` is True
    assert is_cron(said["on"]["schedule"][0]["cron"])


def test_kuberays_schedule_holds_what_its_types_know():
    said = yaml.safe_load(MANIFEST.read_text())
    assert (said["apiVersion"], said["kind"]) == ("ray.io/v1", "RayCronJob")
    spec = said["spec"]
    assert is_cron(spec["schedule"])
    for fields, allowed in ((spec, ALLOWED["spec"]), (spec["jobTemplate"], ALLOWED["jobTemplate"])):
        assert all(isinstance(value, allowed[name]) for name, value in fields.items())
    assert spec["jobTemplate"]["submissionMode"] in ("K8sJobMode", "HTTPMode")


def crontab() -> tuple[dict[str, str], str, str]:
    """What conf/README.md says: variables, schedule and command."""
    page = (ROOT / "conf/README.md").read_text()
    block = re.search(r"((?:    \w+=\S+\n)+)    ((?:\S+ ){5})(cd .*)\n", page)
    variables = dict(line.strip().split("=", 1) for line in block[1].splitlines())
    return variables, block[2].strip(), block[3]


def test_the_crontab_line_has_a_schedule_and_no_percent_sign_which_cron_reads_as_a_new_line():
    variables, schedule, command = crontab()
    assert is_cron(schedule)
    assert "%" not in command
    assert variables["RAY_AUTH_MODE"] == "token"


@pytest.mark.cluster
def test_the_crontab_line_runs_in_crons_environment_against_a_ray_head(tmp_path):
    """cron gives a command HOME, PATH=/usr/bin:/bin, SHELL=/bin/sh and the crontab's variables, no more."""
    support = pytest.importorskip("support.cluster")
    checkout = tmp_path / "vopcore"
    checkout.mkdir()
    for name in ("pipelines", "vopcore", "conf"):
        (checkout / name).symlink_to(ROOT / name)
    (checkout / ".venv").symlink_to(Path(sys.executable).parent.parent)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0" * 64)
    variables, _, command = crontab()
    environment = support.shell_environment(HOME=str(tmp_path), RAY_AUTH_MODE="token")
    line = ["/bin/sh", "-c", command.replace("conf/benchmarks/quick.yaml", f"{tmp_path}/none.yaml")]
    with support.head(checkout, environment) as (url, _):
        own = variables | {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_API_SERVER_ADDRESS": url}
        for _ in range(10):  # a head that has just started takes no jobs yet
            done = subprocess.run(line, env=own, cwd=tmp_path, capture_output=True, text=True, timeout=200)
            if "No available agent" not in done.stderr:
                break
    said = done.stdout + done.stderr
    assert f"error (exit code 2): {tmp_path}/none.yaml: no such file" in said, said
    assert done.returncode == 1
