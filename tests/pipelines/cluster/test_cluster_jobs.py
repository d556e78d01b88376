"""`ray job submit` against a head that was started in the checkout, with token authentication."""

import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.cluster import ROOT, config, corpus, head, metrics, shell_environment, until, weights

pytestmark = pytest.mark.cluster

JUNK = ["outputs/run/a.bin", "data/videos/b.mp4", "c.mp4", "shards/000000.arrow", "mlruns/d", "weights.pt"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository, with 6 GB of what people leave in theirs (sparse, so nothing is written)."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pipelines", "vopcore", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for name in JUNK:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            file.truncate(10**9)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    token = tmp_path_factory.mktemp("secret") / "token"
    token.write_text(secrets.token_hex(32))
    return shell_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))


@pytest.fixture(scope="module")
def cluster(checkout, environment):
    with head(checkout, environment) as (url, temporary):
        yield environment | {"RAY_API_SERVER_ADDRESS": url, "RAY_TMPDIR": str(temporary)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("clips"))


def submit(cluster, *words: str, cwd: Path = Path("/")) -> subprocess.CompletedProcess:
    command = ["ray", "job", "submit", *words]
    return subprocess.run(command, cwd=cwd, env=cluster, capture_output=True, text=True, timeout=300)


def said(done: subprocess.CompletedProcess) -> list[str]:
    """The lines that our own program printed."""
    lines = done.stdout.split("Running entrypoint for job", 1)[1].splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if re.match(r"[0-9-]{10} [0-9:,]{12}\t", line))
    return lines[:end]


def said_last(done: subprocess.CompletedProcess) -> str:
    return said(done)[-1]


@pytest.fixture(scope="module")
def undisturbed(cluster, checkout, clips, tmp_path_factory):
    """A job whose checkout differs from the cluster's: it comes along with --working-dir."""
    folder = tmp_path_factory.mktemp("undisturbed")
    script = checkout / "pipelines/experiment/prepare.py"
    before = script.read_text()
    assert "decoded now, in" in before
    script.write_text(before.replace("decoded now, in", "decoded by a changed checkout, in"))
    (checkout / "outputs/own.yaml").write_text("junk")
    entry = ["python", "pipelines/run.py", str(config(folder, clips, epochs=12))]
    done = submit(cluster, "--working-dir", ".", "--", *entry, cwd=checkout)
    script.write_text(before)
    assert done.returncode == 0, done.stdout[-3000:]
    return folder, done


def test_a_changed_checkout_comes_along_and_gigabytes_of_junk_do_not(cluster, undisturbed):
    _, done = undisturbed
    assert "34 decoded by a changed checkout" in done.stdout
    (package,) = Path(cluster["RAY_TMPDIR"]).glob("session_2*/runtime_resources/*/_ray_pkg_*/")
    there = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    ours = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "pipelines", "vopcore", "conf"]
    listed = subprocess.run(ours, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= there
    assert there.isdisjoint(JUNK)
    assert sum(path.stat().st_size for path in package.rglob("*")) < 3e6


def test_the_log_is_lines_and_ends_in_the_table(undisturbed):
    _, done = undisturbed
    lines = said(done)
    assert "\r" not in done.stdout
    assert any(line.startswith("ingest: 34/34 videos") for line in lines)
    assert any(re.match("method +trainable +%", line) for line in lines)
    assert len(lines) < 40


def test_the_users_line_works_without_a_working_dir_and_goes_on_after_ray_job_stop(
    cluster, clips, undisturbed, tmp_path
):
    file = config(tmp_path, clips, epochs=12)
    line = ["--", "python", "pipelines/run.py", str(file)]
    first = subprocess.Popen(
        ["ray", "job", "submit", "--submission-id", "stopped", *line],
        env=cluster,
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: any(tmp_path.glob("out/runs/vop_p-*/checkpoint_*")), "a checkpoint")
    subprocess.run(["ray", "job", "stop", "stopped"], env=cluster, check=True, capture_output=True)
    log, _ = first.communicate(timeout=60)
    assert "\ninterrupted (exit code 130): the same command goes on from here\n" in log
    assert not list(tmp_path.glob("out/results/*"))
    again = submit(cluster, *line)
    assert again.returncode == 0, again.stdout[-3000:]
    assert "(0 decoded now" in again.stdout
    assert metrics(tmp_path) == metrics(undisturbed[0])
    assert weights(tmp_path) == weights(undisturbed[0])


def test_a_failure_ends_in_our_code_and_reason(cluster, clips, tmp_path):
    file = config(tmp_path, clips)
    wrong = submit(cluster, "--", "python", "pipelines/run.py", str(file), "train.epoch=2")
    assert wrong.returncode == 1  # all that Ray tells
    assert said(wrong)[-1].startswith(f"error (exit code 2): {file}: ")
    assert "did you mean 'epochs'" in said(wrong)[-1]
    strict = submit(
        cluster, "--", "python", "pipelines/run.py", str(file), "video.max_failed=0%", "stages=[ingest]"
    )
    more = r"error \(exit code 3\): [12] of 34 videos failed, more than max_failed \(0.00%\) allows"
    assert re.fullmatch(more, said(strict)[-1])


def test_a_place_that_would_go_with_the_job_is_refused(cluster, checkout):
    entry = ["python", "pipelines/run.py", "conf/own_videos.yaml", "data.root=/tmp"]
    done = submit(cluster, "--working-dir", ".", "--", *entry, cwd=checkout)
    assert "error (exit code 2): output: " in said(done)[-1]
    assert "output=/" in said(done)[-1]


def test_a_benchmark_as_a_job_shows_an_unchanged_round_again_and_reports_a_planted_regression(
    cluster, clips, tmp_path
):
    matrix = tmp_path / "tiny.yaml"
    said = {"name": "tiny", "output": f"{tmp_path}/rounds", "tables": {"methods": {"methods": ["zero_shot"]}}}
    matrix.write_text(yaml.safe_dump(said | {"configs": {"small": {"file": str(config(tmp_path, clips))}}}))
    line = ["--", "python", "pipelines/benchmark.py", str(matrix)]
    first = submit(cluster, *line)
    assert first.returncode == 0, first.stdout[-3000:]
    unchanged = submit(cluster, *line)
    assert unchanged.returncode == 0, unchanged.stdout[-3000:]
    assert "1 cells: 0 finished now, 1 before, 0 failed" in unchanged.stdout

    # The last round is made to look as if it had found everything.
    (file,) = tmp_path.glob("rounds/small/*/results/*.parquet")
    table = pq.read_table(file)
    column = table.schema.get_field_index("rank")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(np.ones(len(table)))), file)
    rerun = submit(cluster, *line, "--rerun")
    assert rerun.returncode == 1  # all that Ray tells
    assert said_last(rerun) == (
        "regression (exit code 4): less is found than the last time: methods: small zero_shot"
    )
    assert "1 cells: 1 finished now, 0 before, 0 failed" in rerun.stdout
    assert len(list((tmp_path / "rounds/history").glob("*.json"))) == 2


def test_the_lines_a_job_ends_with_are_for_the_laptop(undisturbed):
    folder, done = undisturbed
    lines = [line.strip() for line in said(done)]
    heading = lines.index("Compare them in a browser:")
    assert lines[heading + 1] == "ray attach cluster.yaml -p 5000"
    program, _, options = lines[heading + 2].partition(" ui ")
    assert Path(program) == Path(sys.executable).with_name("mlflow")
    assert options.endswith(f"sqlite:///{folder}/out/mlflow.db")
    assert lines[heading + 3].startswith("http://127.0.0.1:5000/#/experiments/")
    (log,) = (folder / "out/logs").glob("*.log")
    assert "34 videos: " in log.read_text()


def test_without_the_token_one_line_says_so(cluster, tmp_path):
    for wrong in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}):
        done = submit(cluster | wrong, "--", "python", "pipelines/run.py", "conf/quickstart.yaml")
        assert done.returncode != 0
        assert "token" in (done.stdout + done.stderr).strip().splitlines()[-1].lower(), done.stderr
