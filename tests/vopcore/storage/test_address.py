"""Addresses and names: what a folder or an object is called is what is opened, character by character."""

import pytest
from pyarrow import fs
from support.bucket import make_bucket, s3_server

from vopcore.datasets.match import VideoFiles
from vopcore.storage import (
    Store,
    all_source_facts,
    below,
    display,
    local_copy,
    open_uri,
    source_facts,
)

NAMES = [
    "a b.mp4",
    "100%.mp4",
    "p q.mp4",
    "p%20q.mp4",
    "a#1.mp4",
    "what?.mp4",
    "a?b=c.mp4",
    "[x].mp4",
    "(y).mp4",
    "café.mp4",
    "кот.mp4",
    "猫.mp4",
    "a+b&c=d.mp4",
]


@pytest.fixture(scope="module")
def options():
    with s3_server() as options:
        yield options


@pytest.fixture(scope="module")
def bucket(options):
    """A bucket whose folder `my videos%20` holds an object of each name, with the name as its content."""
    filesystem = make_bucket("awkward", options)
    for name in NAMES:
        with filesystem.open_output_stream(f"awkward/my videos%20/{name}") as stream:
            stream.write(name.encode())
    return f"s3://awkward/my videos%20{options}"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "my #1 videos?%20"
    place.mkdir()
    for name in NAMES:
        (place / name).write_text(name)
    return str(place)


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_every_name_opens_its_own_file(place, request):
    root = request.getfixturevalue(place)
    files = VideoFiles(root)
    assert files.paths == set(NAMES)
    for name in NAMES:
        (path,) = files.find([name])
        assert source_facts(files.filesystem, path).size == len(name.encode())
        with local_copy(files.filesystem, path) as copy:
            assert copy.read_text() == name
    paths = [files.find([name])[0] for name in NAMES]
    sizes = all_source_facts(files.filesystem, [*paths, None, f"{paths[0]}x"])["size"].to_pylist()
    assert sizes == [len(name.encode()) for name in NAMES] + [None, None]


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_a_folder_of_any_name_holds_a_store(place, request):
    root = request.getfixturevalue(place)
    for name in ("shards #1", "50%25", "a b", "what?"):
        store = Store(below(root, name))
        store.write("x.json", name.encode())
        assert store.names() == ["x.json"]
        assert store.read("x.json") == name.encode()
        assert store.child("more").path("y").endswith(f"/{name}/more/y")
        store.delete("x.json")


def test_options_stay_behind_the_folder():
    assert below("s3://b/x?region=eu&scheme=http", "y") == "s3://b/x/y?region=eu&scheme=http"
    assert below("s3://b/what?", "y") == "s3://b/what?/y"
    assert below("/x?region=eu", "y") == "/x?region=eu/y"


def test_a_local_path_may_hold_what_looks_like_a_scheme(tmp_path):
    filesystem, path = open_uri(f"{tmp_path}/s3://x")
    assert isinstance(filesystem, fs.LocalFileSystem)
    assert path == f"{tmp_path}/s3:/x"


def test_messages_show_no_secrets():
    assert display("s3://KEY:SECRET@bucket/a b?endpoint_override=x") == "s3://bucket/a b"
    assert display("/a@b?c=d") == "/a@b?c=d"


def test_an_unknown_scheme_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^nowhere://x: "):
        open_uri("nowhere://x")


@pytest.mark.parametrize(
    ("stored", "asked", "difference"),
    [
        ("Cafe\u0301.mp4", "Caf\u00e9.mp4", "how its accents are written"),
        ("Talk.MP4", "talk.mp4", "upper and lower case"),
        ("a/b.mp4", "a\\b.mp4", "the slashes"),
    ],
)
def test_a_name_that_is_almost_right_is_mentioned_and_not_taken(tmp_path, stored, asked, difference):
    (tmp_path / stored).parent.mkdir(exist_ok=True)
    (tmp_path / stored).touch()
    files = VideoFiles(tmp_path)
    assert files.find([asked]) == []
    sentence = files.near([asked])
    assert stored in sentence
    assert difference in sentence
    assert files.near([stored, "nothing like it"]) is None
