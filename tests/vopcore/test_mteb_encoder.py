"""A tuned model scored by MTEB on a tiny task of real videos, against the similarities of a plain loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.tuned_model import CAPTIONS, LENGTHS, make

from vopcore.mteb_encoder import TunedEncoder
from vopcore.tuned_model import TunedModel

mteb = pytest.importorskip("mteb")
datasets = pytest.importorskip("datasets")

VIDEOS = list(LENGTHS)


@pytest.fixture(scope="module")
def mean(tmp_path_factory):
    return make(tmp_path_factory.mktemp("mean"))


@pytest.fixture(scope="module")
def query_aware(tmp_path_factory):
    return make(tmp_path_factory.mktemp("query_aware"), "vop_fc", "query_aware", spatial_layers=2)


def task_of(made, direction: str, as_bytes: bool = False):
    """Each caption's video is the one of its number; `direction` t2v or v2t."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    files = (
        [{"bytes": Path(path).read_bytes(), "path": None} for path in made.paths] if as_bytes else made.paths
    )
    texts = {"text": CAPTIONS, "modality": ["text"] * 4}
    videos = {"video": files, "modality": ["video"] * 4}
    queries, corpus = (texts, videos) if direction == "t2v" else (videos, texts)

    def table(prefix: str, columns: dict):
        rows = datasets.Dataset.from_dict({"id": [f"{prefix}{row}" for row in range(4)], **columns})
        return rows.cast_column("video", datasets.Video()) if "video" in columns else rows

    class Tiny(AbsTaskRetrieval):
        metadata = TaskMetadata(
            type="Any2AnyRetrieval",
            name=f"Tiny{direction.upper()}",
            description="four videos that were made here",
            main_score="hit_rate_at_1",
            dataset={"path": "here", "revision": "1"},
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            modalities=["text", "video"] if direction == "t2v" else ["video", "text"],
            category=direction,
        )

        def load_data(self, **options: object) -> None:
            split = RetrievalSplitData(
                queries=table("q", queries),
                corpus=table("d", corpus),
                relevant_docs={f"q{row}": {f"d{row}": 1} for row in range(4)},
                top_ranked=None,
            )
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Tiny()


def reciprocal_ranks(similarity: torch.Tensor) -> float:
    """The mean reciprocal rank, by counting."""
    right = similarity.diagonal()[:, None]
    return float((1 / (similarity >= right).sum(1)).mean())


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
@pytest.mark.parametrize("pooling", ["mean", "query_aware"])
def test_mteb_finds_the_recall_of_the_plain_loop(request, tmp_path, pooling, direction):
    made = request.getfixturevalue(pooling)
    encoder = TunedEncoder(TunedModel(made.folder), "me/tiny")
    cache = mteb.ResultCache(cache_path=tmp_path)
    result = mteb.evaluate(encoder, [task_of(made, direction)], cache=cache)

    (score,) = result.task_results[0].scores["test"]
    similarity = made.similarity if direction == "t2v" else made.similarity.T
    ranks = (similarity > similarity.diagonal()[:, None]).sum(1)
    assert score["hit_rate_at_1"] == pytest.approx((ranks == 0).float().mean().item(), abs=1e-5)
    assert score["mrr_at_10"] == pytest.approx(reciprocal_ranks(similarity), abs=1e-4)
    assert (result.model_name, result.model_revision) == ("me/tiny", TunedModel(made.folder).tuned_hash)


def test_bytes_of_a_data_set_give_the_vectors_of_the_files(mean):
    encoder = TunedEncoder(TunedModel(mean.folder))
    vectors = []
    for as_bytes in (False, True):
        task = task_of(mean, "t2v", as_bytes)
        task.load_data()
        rows = task.dataset["default"]["test"]["corpus"]
        vectors.append(encoder.encode(torch.utils.data.DataLoader(rows)))
    np.testing.assert_array_equal(*vectors)
    np.testing.assert_array_equal(vectors[0], mean.retriever.vectors(mean.video, mean.mask).numpy())


def test_rows_of_anything_else_are_refused(mean):
    rows = datasets.Dataset.from_dict({"image": [1]})
    with pytest.raises(ValueError, match="texts or videos, and these rows hold image"):
        TunedEncoder(TunedModel(mean.folder)).encode(torch.utils.data.DataLoader(rows))


def test_pairs_are_the_diagonal_of_all_similarities(query_aware):
    model = TunedModel(query_aware.folder)
    encoder = TunedEncoder(model)
    text, videos = model.embed_captions(CAPTIONS), model.embed_videos(query_aware.paths)
    pairs = encoder.similarity_pairwise(text, videos)
    torch.testing.assert_close(pairs, query_aware.similarity.diagonal(), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.similarity_pairwise(videos, text), pairs, rtol=0, atol=1e-5)
