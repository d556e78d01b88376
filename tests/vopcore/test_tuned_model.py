"""A tuned method read back from its folder, against the plain loop of decode, load_tuned and Retriever."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from support.moments import HEADER, moments, video
from support.tuned_model import CAPTIONS, LENGTHS, make

from vopcore import embedder, tuned_model
from vopcore.index import Question, open_index, write_header
from vopcore.index.model import prepare_text_tower
from vopcore.storage import Store
from vopcore.tuned_model import TunedModel
from vopcore.video import choose, decode


@pytest.fixture(scope="module")
def mean(tmp_path_factory):
    return make(tmp_path_factory.mktemp("mean"))


@pytest.fixture(scope="module")
def query_aware(tmp_path_factory):
    return make(tmp_path_factory.mktemp("query_aware"), "vop_fc", "query_aware", spatial_layers=2)


@pytest.fixture(params=["mean", "query_aware"])
def made(request):
    return request.getfixturevalue(request.param)


def captions(*texts: str) -> pd.DataFrame:
    return pd.DataFrame({"caption": texts or CAPTIONS})


def test_captions_become_the_vectors_that_the_retriever_gives(made):
    wanted = F.normalize(made.text, dim=-1) if made.retriever.pooling == "mean" else made.text
    got = TunedModel(made.folder).predict(captions())
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted.numpy())


def test_videos_become_vectors_whose_products_with_captions_are_their_similarity(mean):
    ready = TunedModel(mean.folder)
    video = ready.predict(pd.DataFrame({"video": mean.paths}))
    np.testing.assert_allclose(ready.predict(captions()) @ video.T, mean.similarity, rtol=0, atol=1e-6)


def test_query_aware_keeps_the_feature_of_each_frame_and_zeros_for_padding(query_aware):
    video = TunedModel(query_aware.folder).predict(pd.DataFrame({"video": query_aware.paths}))
    wanted = query_aware.video * query_aware.mask.unsqueeze(-1)
    assert not query_aware.mask.all()
    np.testing.assert_array_equal(video, wanted.numpy())


def test_captions_rank_the_videos_of_the_gallery_as_their_similarity_does(made):
    found = TunedModel(made.folder).predict(captions(), {"top_k": 3})
    names, order = np.array(list(LENGTHS)), made.similarity.argsort(dim=1, descending=True)[:, :3]
    assert found["caption"].tolist() == CAPTIONS
    assert found["top"].tolist() == names[order].tolist()
    np.testing.assert_allclose(
        np.array(found["scores"].tolist()), made.similarity.gather(1, order), rtol=0, atol=1e-6
    )


def test_more_videos_than_there_are_is_all_of_them(mean):
    (top,) = TunedModel(mean.folder).predict(captions("a ball"), {"top_k": 99})["top"]
    assert sorted(top) == sorted(LENGTHS)


def test_any_number_of_captions_and_videos_is_embedded_in_chunks(mean, monkeypatch):
    ready, many = TunedModel(mean.folder), 5 * CAPTIONS
    whole, ranked = ready.embed_captions(many), ready.rank_videos(many, 4)[0]
    videos = ready.embed_videos(mean.paths)
    monkeypatch.setattr(embedder, "VIDEOS_AT_ONCE", 1)
    monkeypatch.setattr(embedder, "CAPTIONS_AT_ONCE", 1)
    np.testing.assert_allclose(ready.embed_captions(many), whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ready.embed_videos(mean.paths), videos, rtol=0, atol=1e-6)
    assert ready.rank_videos(many, 4)[0] == ranked


def test_a_row_may_hold_a_list_and_no_row_gives_no_vector(mean):
    ready = TunedModel(mean.folder)
    listed = ready.predict(pd.DataFrame({"caption": [CAPTIONS]}))
    np.testing.assert_array_equal(listed, ready.predict(captions()))
    assert ready.predict(captions()[:0]).shape == (0, 64)
    assert ready.predict(pd.DataFrame({"video": []})).shape == (0, 64)
    assert ready.predict(captions()[:0], {"top_k": 2})["top"].tolist() == []


def test_what_cannot_be_answered_is_refused_in_one_line(mean, tmp_path):
    ready = TunedModel(mean.folder)

    def refused(rows: pd.DataFrame, **params: int) -> str:
        with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
            ready.predict(rows, params)
        return str(error.value)

    assert "{'caption': [...]}" in refused(pd.DataFrame({"captions": ["a"]}))
    assert "not both" in refused(pd.DataFrame({"caption": ["a"], "video": ["b"]}))
    assert refused(captions("a", None)) == "row 1: the caption is nan, not a text"
    assert refused(captions(), top_k=-1).startswith("top_k: -1")
    assert refused(pd.DataFrame({"video": mean.paths}), top_k=2).startswith("top_k: 2")
    (mean.folder / "videos.safetensors").rename(tmp_path / "videos.safetensors")
    ready = TunedModel(mean.folder)
    (tmp_path / "videos.safetensors").rename(mean.folder / "videos.safetensors")
    assert "without a gallery" in refused(captions(), top_k=2)


def test_random_frozen_weights_are_drawn_anew_and_nobody_elses_random_numbers_change(tmp_path):
    made = make(tmp_path, frozen=False)
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    ready = TunedModel(made.folder)
    assert torch.equal(torch.rand(3), wanted)
    np.testing.assert_array_equal(ready.predict(captions()), F.normalize(made.text, dim=-1).numpy())


def test_large_frozen_weights_are_named_and_may_have_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned_model, "MAX_COPIED", 10_000)
    made = make(tmp_path)
    said = json.loads((made.folder / "settings.json").read_text())
    assert (said["model"], said["pretrained"]) == ("model.json", f"{tmp_path}/frozen.safetensors")
    wanted = TunedModel(made.folder).predict(captions())
    (tmp_path / "frozen.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(ValueError, match=r"frozen.safetensors: the frozen weights are not there; .*PATH"):
        TunedModel(made.folder)
    config = {"device": "auto", "pretrained": f"{tmp_path}/moved.safetensors"}
    moved = tuned_model._load_pyfunc(str(made.folder), config)
    np.testing.assert_array_equal(moved.predict(captions()), wanted)


def test_other_frozen_weights_are_refused(tmp_path):
    made = make(tmp_path)
    said = json.loads((made.folder / "settings.json").read_text())
    (made.folder / "settings.json").write_text(json.dumps(said | {"pretrained": None, "seed": 6}))
    with pytest.raises(ValueError, match="tuned on other weights"):
        TunedModel(made.folder)


def test_a_file_that_cannot_be_decoded_is_a_row_with_its_error(mean, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("<html>")
    ready = TunedModel(mean.folder)
    answered = ready.predict(pd.DataFrame({"video": [mean.paths[0], str(bad), mean.paths[1]]}))
    vectors = ready.predict(pd.DataFrame({"video": mean.paths[:2]}))
    assert answered["error"].isna().tolist() == [True, False, True]
    assert answered["error"][1].startswith(f"{bad}: not a readable video file")
    assert answered["vector"][1] is None
    np.testing.assert_allclose(np.array(answered["vector"][0]), vectors[0], atol=1e-6)
    np.testing.assert_allclose(np.array(answered["vector"][2]), vectors[1], atol=1e-6)


def test_captions_find_moments_of_an_index_made_by_the_same_weights(mean, query_aware, tmp_path):
    facts = prepare_text_tower(mean.folder)
    header = replace(HEADER, dimension=facts.dimension, tuned=facts.tuned)
    store = Store(tmp_path)
    write_header(store, header)
    index = open_index(str(tmp_path))
    index.table.add([(video("a.mp4"), moments(30, 1, facts.dimension))])

    params = {"index": str(tmp_path), "top_k": 2}
    answered = TunedModel(mean.folder).predict(captions(), params)
    assert answered["caption"].tolist() == CAPTIONS
    for row, features in enumerate(mean.text):
        expected = index.search(Question(features=features, top=2))
        assert [found["score"] for found in answered["top"][row]] == pytest.approx(
            [answer.score for answer in expected], abs=1e-5
        )
        assert answered["top"][row][0]["video"] == "a.mp4"
    with pytest.raises(ValueError, match="was made by other weights"):
        TunedModel(query_aware.folder).predict(captions(), params)


def test_videos_are_resized_as_those_that_were_tuned_on(tmp_path):
    made = make(tmp_path)
    settings_file = made.folder / "settings.json"
    settings = json.loads(settings_file.read_text())
    centre_cropped = TunedModel(made.folder).embed_videos(made.paths[:1])

    settings_file.write_text(json.dumps(settings | {"resize": "squash", "interpolation": "bilinear"}))
    squashed = decode(
        made.paths[0],
        count=settings["stored_frames"],
        size=settings["size"],
        sampler="segment",
        resize="squash",
        interpolation="bilinear",
    ).pixels
    frames = squashed[choose(len(squashed), settings["frames"], None)]
    expected = made.retriever.vectors(made.retriever.video(torch.from_numpy(frames).movedim(-1, 1)[None]))
    vectors = TunedModel(made.folder).embed_videos(made.paths[:1])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(vectors, centre_cropped, atol=1e-4)

    # A model that was saved before the two keys has seen the centre crop.
    del settings["resize"], settings["interpolation"]
    settings_file.write_text(json.dumps(settings))
    assert torch.equal(TunedModel(made.folder).embed_videos(made.paths[:1]), centre_cropped)
