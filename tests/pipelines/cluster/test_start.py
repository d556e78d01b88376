"""Joining or starting a Ray: who answers, where its sockets fit, who may read its token."""

import socket
import stat
import subprocess
import sys
import tempfile

import pytest
from ray._private.utils import write_ray_address
from support import ROOT

from pipelines.cluster.start import MAX_FOLDER, _say_another_runs, short_folder, wait_for
from vopcore.config import ConfigError


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_ray_that_does_not_answer_is_named_and_not_waited_for_without_end(capsys):
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=rf"^RAY_ADDRESS: nothing answers at {address} \(Connection ref"):
        wait_for(address, patience=0)
    with pytest.raises(ConfigError, match=r"unset RAY_ADDRESS"):
        wait_for(f"ray://{address}", patience=0.5)
    assert capsys.readouterr().err == f"waiting for the Ray at ray://{address} (Connection refused)\n"


def test_one_that_listens_is_joined_at_once(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wait_for(f"127.0.0.1:{listener.getsockname()[1]}", patience=0)
    wait_for("auto", patience=0)  # Ray itself knows where to look
    assert capsys.readouterr().err == ""


def test_a_long_temporary_folder_is_left_and_a_long_one_of_rays_refused(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * (MAX_FOLDER - 5))
    assert short_folder() is None
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 100)
    assert len(short_folder()) < MAX_FOLDER
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 100)
    with pytest.raises(ConfigError, match=r"^RAY_TMPDIR: /tmp/x+ has 105 characters"):
        short_folder()


def test_a_ray_of_this_host_that_is_not_joined_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    note = tmp_path / "ray" / "ray_current_cluster"  # where `ray start` leaves its address
    note.parent.mkdir()
    write_ray_address("127.0.0.1:1")
    assert note.read_text() == "127.0.0.1:1"
    _say_another_runs()
    assert capsys.readouterr().err == ""  # it has ended since
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        write_ray_address(address)
        _say_another_runs()
    assert capsys.readouterr().err == (
        f"a Ray runs at {address}, and this command starts one of its own: RAY_ADDRESS={address} joins it\n"
    )


START = """
import os, psutil, ray
from pipelines.cluster.start import start_ray
from vopcore.config import read_config

start_ray(read_config("conf/quickstart.yaml", ["method.name=zero_shot"]))
own = psutil.Process()
for process in [own, *own.children(recursive=True)]:
    for connection in process.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            print("listens", connection.laddr.ip.removeprefix("::ffff:"))

@ray.remote(num_cpus=0)
def visible():
    return os.environ["CUDA_VISIBLE_DEVICES"]

print("sees", repr(ray.get(visible.remote())))
"""


@pytest.mark.cluster
def test_a_ray_of_ones_own_listens_on_this_machine_alone_and_hides_its_token_and_gpus(tmp_path):
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray:
        environment = {
            "HOME": str(tmp_path),
            "RAY_TMPDIR": ray,
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "CUDA_VISIBLE_DEVICES": "0",
        }
        ended = subprocess.run(
            [sys.executable, "-c", START], cwd=ROOT, env=environment, capture_output=True, text=True
        )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert set(ended.stdout.splitlines()) == {"listens 127.0.0.1", "sees ''"}
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
