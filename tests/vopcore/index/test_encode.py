"""Windows and texts become the vectors that the tuned CLIP itself gives them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support.tuned_model import CAPTIONS, FRAMES, SIZE, make

from vopcore.index import BadIndexError, Span
from vopcore.index.encode import TEXT_FILE, FrozenText, TextEncoder, WindowEncoder, WindowFrames, shorten
from vopcore.index.model import local_model, prepare_plain_model, prepare_text_tower, upload_model
from vopcore.tuned_model import ModelSettings
from vopcore.video import stack

METHODS = {
    "vop": {},
    "vop_p": {},
    "vop_fc": {"spatial_layers": 2},
    "lora": {},
    "cross_modal_adapter": {"reduction": 8, "shared": 8},
    "full": {},
    "maple": {"prompts": 2, "depth": 2},
}


@pytest.fixture(scope="module", params=METHODS)
def model(request, tmp_path_factory):
    pooling = "query_aware" if request.param == "cross_modal_adapter" else "mean"
    made = make(tmp_path_factory.mktemp(request.param), request.param, pooling, **METHODS[request.param])
    facts = prepare_text_tower(made.folder)
    return made, facts


def window_frames() -> WindowFrames:
    pixels = np.random.default_rng(0).integers(0, 256, (11, SIZE, SIZE, 3), np.uint8)
    return WindowFrames(
        spans=[Span(0, 4), Span(2, 6), Span(4, 7)],
        pixels=pixels,
        thumbnails=[f"picture {number}".encode() for number in range(11)],
        times=np.arange(11) * 0.6,
        frames=[[0, 2, 4, 6], [3, 5, 7, 9], [8, 10]],
    )


def test_windows_become_the_vectors_of_the_retriever(model):
    made, facts = model
    windows = window_frames()
    rows = WindowEncoder(made.folder).rows(windows)

    stacked, mask = stack([windows.pixels[chosen] for chosen in windows.frames], FRAMES)
    with torch.no_grad():
        features = made.retriever.video(torch.from_numpy(stacked).permute(0, 1, 4, 2, 3), mask)
    unit = F.normalize(features, dim=-1) * mask[..., None]
    vectors = F.normalize(unit.sum(dim=1), dim=-1)
    assert rows.vectors.dtype == np.float16
    assert rows.vectors.shape == (3, facts.dimension)
    np.testing.assert_allclose(rows.vectors, vectors, atol=1e-3)

    for window, chosen in enumerate(rows.frames):
        np.testing.assert_allclose(
            rows.features[chosen], features[window, : len(chosen)], rtol=2e-3, atol=2e-3
        )
        np.testing.assert_allclose(rows.times[chosen], windows.times[windows.frames[window]], rtol=1e-6)
        likeness = unit[window, : len(chosen)] @ vectors[window]
        best = int(likeness.argmax())
        assert rows.best[window] == rows.times[chosen[best]]
        assert rows.thumbnails[window] == f"picture {windows.frames[window][best]}".encode()


def test_texts_become_the_features_of_the_whole_clip_without_its_vision_weights(model, tmp_path):
    made, facts = model
    encoder = TextEncoder(made.folder)
    torch.testing.assert_close(encoder.encode(CAPTIONS), made.text, rtol=0, atol=1e-6)
    assert encoder.pooling == facts.pooling
    assert not [name for name in load_file(made.folder / TEXT_FILE) if name.startswith("visual")]


def test_a_method_that_sees_frames_alone_encodes_each_once(tmp_path):
    seen = {}
    for name in ("vop", "vop_p", "vop_fc"):
        made = make(tmp_path / name, name, **METHODS[name])
        rows = WindowEncoder(made.folder).rows(window_frames())
        seen[name] = len(rows.times)
    assert seen == {"vop": 11, "vop_p": 10, "vop_fc": 10}


def test_two_tuned_methods_share_one_frozen_text_tower(tmp_path):
    first, second = make(tmp_path / "a", "vop"), make(tmp_path / "b", "lora")
    for made in (first, second):
        prepare_text_tower(made.folder)
    frozen = FrozenText(first.folder)
    embedding = frozen.clip.token_embedding.weight
    encoders = [TextEncoder(made.folder, frozen) for made in (first, second)]
    for encoder, made in zip(encoders, (first, second), strict=True):
        shared = encoder._retriever.clip.token_embedding.weight
        assert shared.data_ptr() == embedding.data_ptr()
        torch.testing.assert_close(encoder.encode(CAPTIONS), made.text, rtol=0, atol=1e-6)


def test_a_text_tower_of_another_clip_is_refused(tmp_path):
    made = make(tmp_path, "vop")
    prepare_text_tower(made.folder)
    tensors = load_file(made.folder / TEXT_FILE)
    save_file(tensors, made.folder / TEXT_FILE, {"backbone": "0" * 64, "tuned": "0" * 64})
    with pytest.raises(BadIndexError, match="not the one that the weights were tuned on"):
        TextEncoder(made.folder)
    (made.folder / TEXT_FILE).write_bytes(b"half")
    with pytest.raises(BadIndexError, match=f"{TEXT_FILE}: the text tower cannot be read"):
        TextEncoder(made.folder)


def test_a_plain_clip_is_a_model_too(tmp_path):
    settings = ModelSettings("conf/tiny_clip.json", None, 3, 16, 4, 4, SIZE, "uniform")
    prepare_plain_model(tmp_path / "model", settings)
    facts = prepare_text_tower(tmp_path / "model")
    assert (facts.method, facts.pooling, facts.frames, facts.dimension) == ("zero_shot", "mean", 4, 64)
    vectors = WindowEncoder(tmp_path / "model").rows(window_frames()).vectors
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-3)


def test_a_still_and_a_video_are_examples(model):
    made, _ = model
    encoder = WindowEncoder(made.folder)
    pixels = window_frames().pixels
    rows = encoder.rows(window_frames())
    example = encoder.example(pixels[[0, 2, 4, 6]])
    np.testing.assert_allclose(example, rows.vectors[0].astype(np.float32), atol=1e-3)
    still = encoder.example(pixels[:1])
    assert float(still.norm()) == pytest.approx(1, abs=1e-5)


def test_a_model_goes_into_an_index_and_comes_out_the_same(tmp_path):
    made = make(tmp_path / "run", "vop")
    facts = prepare_text_tower(made.folder)
    upload_model(made.folder, str(tmp_path / "index"))
    folder = local_model(str(tmp_path / "index"), facts.tuned)
    assert folder == tmp_path / "index" / "model"
    torch.testing.assert_close(TextEncoder(folder).encode(CAPTIONS), made.text, rtol=0, atol=1e-6)


def test_endless_texts_are_cut_before_the_tokenizer_sees_them():
    assert shorten("a dog  runs\n") == "a dog runs"
    assert len(shorten("word " * 10_000)) <= 2000
    assert shorten("x" * 32_000) == "x" * 100
