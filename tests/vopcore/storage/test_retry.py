"""What passes is tried again, what lasts is said at once, and the rest is one line."""

import errno

import pytest
from support.bucket import make_bucket, s3_server

from vopcore.storage import StorageError, probe, with_retries
from vopcore.storage import retry as module


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The pauses, which are not waited for."""
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    return waits


def failing(times, error):
    calls = []

    def action():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return action


def test_what_passes_is_tried_again_with_growing_pauses(waits):
    assert with_retries(failing(3, OSError("SLOW_DOWN")), "s3://b") == 4
    assert len(waits) == 3
    assert all(wait / 2 <= pause <= wait for pause, wait in zip(waits, module.WAITS, strict=False))


def test_what_goes_on_is_one_line_with_machine_place_and_cause():
    with pytest.raises(StorageError) as caught:
        with_retries(failing(99, OSError("could not\n connect")), "s3://b")
    assert str(caught.value).endswith(" cannot use s3://b: could not connect")
    assert module.socket.gethostname() in str(caught.value)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("x"), OSError(errno.ENOSPC, "full"), OSError("AWS Error ACCESS_DENIED")]
)
def test_what_lasts_is_not_tried_again(waits, error):
    with pytest.raises(type(error)):
        with_retries(failing(1, error), "s3://b")
    assert waits == []


def test_a_probe_writes_reads_and_deletes_and_leaves_nothing(tmp_path):
    probe(str(tmp_path), write=True)
    probe(str(tmp_path), write=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match=r"cannot use .*nowhere: there is no such folder"):
        probe(str(tmp_path / "nowhere"), write=False)


def test_a_probe_names_the_bucket_that_cannot_be_used():
    with s3_server() as options:
        make_bucket("here", options)
        strict = options.replace("&allow_bucket_creation=true", "")
        probe(f"s3://here/folder{options}", write=True)
        with pytest.raises(StorageError, match="cannot use s3://nowhere"):
            probe(f"s3://nowhere/folder{strict}", write=True)
