"""The search API over real indexes, as a client on the network sees it."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import torch
from support.server import Server, make_index
from support.tuned_model import make
from support.video import write_video

from pipelines.serving import queue
from vopcore.index import open_index

TOKEN = "a token of thirty-two characters"
NAMES = ["a.mp4", "cats/b.mp4", "cats/<img src=x onerror=alert(1)>.mp4", "d #1?x=%2e%2e&'\"é.mp4"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four videos with hostile names, two indexes of two methods tuned on one CLIP."""
    folder = tmp_path_factory.mktemp("world")
    videos = folder / "videos"
    for number, name in enumerate(NAMES):
        path = videos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, 150, gop=25 + number)
    (folder / "secret.mp4").write_bytes(b"secret")
    for method in ("vop", "lora"):
        make_index(folder / method, videos, make(folder / f"run-{method}", method).folder)
    return folder


@pytest.fixture(scope="module")
def url(world):
    with Server(world / "vop", world / "lora") as address:
        yield address


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, timeout=60) as session:
        yield session


def test_two_methods_on_one_frozen_clip_answer_side_by_side(client):
    assert client.get("/health").json() == {"status": "ok", "indexes": 2, "backbones": 1}
    described = client.get("/indexes").json()
    assert [(entry["name"], entry["method"], entry["videos"]) for entry in described] == [
        ("vop", "vop", 4),
        ("lora", "lora", 4),
    ]
    vectors = {}
    for name in ("vop", "lora"):
        answer = client.post(
            "/search", json={"text": ["a red ball", "a dog"], "index": name, "top": 3}
        ).json()
        assert answer["index"] == name
        assert [len(found) for found in answer["answers"]] == [3, 3]
        vectors[name] = client.post("/embed", json={"text": "a red ball", "index": name}).json()["vectors"]
    assert vectors["vop"] != vectors["lora"]
    np.testing.assert_allclose(np.linalg.norm(vectors["vop"][0]), 1, atol=1e-5)


def test_scores_are_those_of_the_index_itself(client, world):
    answers = client.post("/search", json={"text": "a red ball", "by_video": True}).json()["answers"][0]
    vector = torch.tensor(client.post("/embed", json={"text": "a red ball"}).json()["vectors"][0])
    table = open_index(str(world / "vop")).table
    found = table.nearest(vector, 1, None)
    assert answers[0]["score"] == pytest.approx(float(found.vectors[0].float() @ vector), abs=1e-5)
    assert sorted(answer["video"] for answer in answers) == sorted(NAMES)


def test_filters_and_examples(client):
    body = {"text": "a", "folder": "cats", "top": 50}
    videos = {answer["video"] for answer in client.post("/search", json=body).json()["answers"][0]}
    assert videos == set(NAMES[1:3])
    example = {"like": {"video": NAMES[3], "start": 2.0}, "top": 1}
    best = client.post("/search", json=example).json()["answers"][0][0]
    assert best["score"] == pytest.approx(1, abs=1e-3)
    assert client.post("/search", json={"text": "a", "before": "1999-01-01"}).json()["answers"] == [[]]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": ""},
        {"text": "   "},
        {"text": []},
        {"text": "a", "like": {"video": "a.mp4"}},
        {"text": "a", "top": 0},
        {"text": "a", "top": 10**9},
        {"text": "a", "where": "colour = 1"},
        {"text": "a", "where": "1; DROP TABLE videos"},
        {"text": "a", "index": "../vop"},
        {"text": "a", "after": "yesterday"},
        {"text": "a", "unknown": 1},
        {"like": {"video": "../secret.mp4"}},
        {"text": ["a"] * 300},
    ],
)
def test_a_request_that_is_none_is_refused_with_a_reason(client, body):
    response = client.post("/search", json=body)
    if body == {"text": []}:
        assert response.json()["answers"] == []
        return
    assert response.status_code == 422
    assert response.json()["detail"]


def test_a_query_of_ten_thousand_words_is_cut_and_answered(client):
    response = client.post("/search", json={"text": "word " * 10_000, "top": 1})
    assert response.status_code == 200
    refused = client.post("/search", content=b"x" * 2**21)
    assert refused.status_code == 413
    assert refused.json()["detail"] == "a request has at most 1,048,576 bytes"


@pytest.mark.parametrize("path", ["/search", "/login"])
def test_a_request_that_does_not_say_how_long_it_is_is_refused_too(client, path):
    blocks = (b" " * 2**16 for _ in range(2**6))
    assert client.post(path, content=blocks).status_code == 413
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("name", NAMES)
def test_a_video_is_served_whole_and_in_parts(client, world, name):
    content = (world / "videos" / name).read_bytes()
    address = f"/video/vop/{quote(name)}"
    whole = client.get(address)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["content-type"] == "video/mp4"
    part = client.get(address, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
    tail = client.get(address, headers={"range": "bytes=-5"})
    assert tail.content == content[-5:]
    assert client.get(address, headers={"range": f"bytes={len(content)}-"}).status_code == 416
    picture = client.get(f"/thumbnail/vop/{quote(name)}", params={"time": 2.2})
    assert picture.content[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize(
    "path",
    [
        "/video/vop/../secret.mp4",
        "/video/vop/..%2Fsecret.mp4",
        "/video/vop/%2e%2e/secret.mp4",
        "/video/vop//etc/passwd",
        "/video/vop/%2Fetc%2Fpasswd",
        "/video/vop/cats",
        "/video/vop/cats/..%2Fa.mp4",
        "/video/vop/a.mp4%00",
        "/video/../index.json",
        "/video/nothing/a.mp4",
        "/thumbnail/vop/..%2Fa.mp4",
        "/page.js/../../app.py",
        "/index.json",
    ],
)
def test_no_other_file_is_served_whatever_the_id(url, path):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        reply = b""
        while block := connection.recv(65536):
            reply += block
    assert b" 404 " in reply.split(b"\r\n")[0]
    assert b"secret" not in reply.split(b"\r\n\r\n", 1)[1]
    assert b"root:" not in reply


def test_a_video_that_was_replaced_by_a_link_out_of_the_folder_is_not_served(tmp_path, world):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (videos / name).write_bytes((world / "videos/a.mp4").read_bytes())
    folder = make_index(tmp_path / "index", videos, make(tmp_path / "run", "vop").folder)
    (videos / "a.mp4").unlink()
    (videos / "b.mp4").unlink()
    (videos / "b.mp4").symlink_to(world / "secret.mp4")
    with Server(folder) as address:
        for name in ("a.mp4", "b.mp4"):
            response = httpx.get(f"{address}/video/index/{name}")
            assert (response.status_code, response.json()["detail"]) == (404, "this video is no longer there")


def test_a_client_that_goes_away_in_the_middle_of_a_video_harms_nobody(client, url):
    host, port = url.removeprefix("http://").split(":")
    for _ in range(5):
        connection = socket.create_connection((host, int(port)))
        connection.sendall(f"GET /video/vop/a.mp4 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        connection.recv(10)
        connection.close()
    assert client.get("/health").json()["status"] == "ok"


def test_a_thousand_queries_at_once_are_all_answered(url):
    async def ask_all() -> list[int]:
        limits = httpx.Limits(max_connections=1000)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as session:
            asked = [session.post("/search", json={"text": f"query {i}", "top": 1}) for i in range(1000)]
            return [response.status_code for response in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == [200] * 1000


def test_more_queries_than_the_queue_holds_are_told_to_come_back(url, monkeypatch):
    monkeypatch.setattr(queue, "MAX_WAITING", 3)
    response = httpx.post(f"{url}/search", json={"text": ["a", "b", "c", "d"]})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    monkeypatch.undo()
    assert httpx.post(f"{url}/search", json={"text": ["a", "b"]}, timeout=60).status_code == 200


def test_a_server_for_others_wants_its_token_for_all_that_tells_of_videos(world):
    with Server(world / "vop", token=TOKEN) as address, httpx.Client(base_url=address, timeout=60) as session:
        assert session.get("/").status_code == 200
        for path in ("/indexes", "/video/vop/a.mp4", "/thumbnail/vop/a.mp4", "/docs", "/openapi.json"):
            assert session.get(path).status_code == 401
        assert session.post("/search", json={"text": "a"}).status_code == 401
        assert session.post("/login", json={"token": "wrong"}).status_code == 401
        assert session.get("/indexes", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert session.post("/login", json={"token": TOKEN}).status_code == 204
        assert session.get("/indexes").status_code == 200


def test_a_page_of_the_web_cannot_ask_through_its_visitors_browser(client):
    assert client.get("/indexes", headers={"host": "rebound.example"}).status_code == 400
    response = client.get("/")
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_client_written_from_the_description_alone_finds_its_way(client):
    description = client.get("/openapi.json").json()
    request = description["components"]["schemas"]["SearchRequest"]["properties"]
    assert {"text", "like", "top", "where", "folder", "after", "before", "by_video", "index"} == set(request)
    moment = description["components"]["schemas"]["FoundMoment"]["required"]
    answer = client.post("/search", json={"text": "a", "top": 1}).json()["answers"][0][0]
    assert set(moment) == set(answer)
    assert {"/search", "/embed", "/health", "/indexes", "/video/{index}/{video}"} <= set(description["paths"])


def test_what_index_py_changes_is_seen_without_a_restart(tmp_path, world, monkeypatch):
    monkeypatch.setattr("pipelines.serving.catalogue.LOOK_EVERY", 0.0)
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (videos / name).write_bytes((world / "videos/a.mp4").read_bytes())
    folder = make_index(tmp_path / "index", videos, make(tmp_path / "run", "vop").folder)
    with Server(folder) as address, ThreadPoolExecutor(1):
        body = {"text": "a", "by_video": True}
        assert len(httpx.post(f"{address}/search", json=body, timeout=60).json()["answers"][0]) == 2
        open_index(str(folder)).table.drop(["b.mp4"])
        found = httpx.post(f"{address}/search", json=body, timeout=60).json()["answers"][0]
        assert [answer["video"] for answer in found] == ["a.mp4"]
