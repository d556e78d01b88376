"""What a training step does on a GPU, on tensors that say they are on one: devices, dtypes, syncs, memory."""

import json

import pytest
from support import fake_cuda
from support.methods import TRAINED

NEEDS_COMPILER = pytest.mark.skipif(not fake_cuda.can_build(), reason="needs gcc and torch's CUDA headers")
MOST_SYNCS = 1  # loss and gradient norm together, a step late
SYNC_METHODS = ["vop", "vop_fc", "cross_modal_adapter", "full"]
BASE = {"tiny": False, "videos": 32, "frames": 12, "words": 32, "estimate": True}  # ViT-B/32, MSR-VTT


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    fake_cuda.build(folder)
    return folder


def steps(runtime, cases):
    file = runtime / "cases.json"
    file.write_text(json.dumps(cases))
    return fake_cuda.run("support.fake_cuda.steps", str(file), runtime=runtime)


@NEEDS_COMPILER
def test_every_method_scores_on_a_gpu(runtime):
    assert fake_cuda.run("support.fake_cuda.scores", runtime=runtime) == []


@pytest.mark.long
@NEEDS_COMPILER
def test_every_method_trains_on_a_gpu_and_goes_on_after_a_stop(runtime):
    cases = []
    for name in TRAINED:
        cases.append({"name": name, "pooling": "query_aware", "train": {"precision": "bf16"}})
        cases.append({"name": name, "short": True, "resumed": True, "train": {"precision": "fp32"}})
    cases.append({"name": "cross_modal_adapter", "train": {"micro_batch": 3, "learn_logit_scale": True}})
    cases.append({"name": "vop_c", "train": {"grad_checkpointing": True, "mask_duplicates": True}})
    answers = steps(runtime, cases)
    assert len(answers) == len(cases)
    for case, answer in zip(cases, answers, strict=True):
        assert answer["operations"] > 0, case


@NEEDS_COMPILER
def test_a_step_waits_for_the_gpu_once_fresh_and_resumed(runtime):
    cases = [{"name": name, "resumed": resumed} for name in SYNC_METHODS for resumed in (False, True)]
    for case, answer in zip(cases, steps(runtime, cases), strict=True):
        assert answer["syncs_per_step"] <= MOST_SYNCS, (case, answer["syncs"])


@pytest.mark.long
@NEEDS_COMPILER
def test_the_memory_of_a_step_is_known_before_it(runtime):
    cases = [{"name": name, **BASE} for name in ("vop", "full")]
    cases.append({"name": "vop", **BASE, "train": {"precision": "fp32", "grad_checkpointing": True}})
    for case, answer in zip(cases, steps(runtime, cases), strict=True):
        assert answer["estimated"] == pytest.approx(answer["peak"], rel=0.2), case


@NEEDS_COMPILER
def test_a_bf16_step_of_vop_takes_few_passes_over_memory(runtime):
    (answer,) = steps(runtime, [{"name": "vop", **BASE, "train": {"precision": "bf16"}}])
    assert answer["operations"] <= 900
    assert answer["bytes"] <= 37e9
    assert all("cudnn" in name or "flash" in name for name in answer["attention"])
