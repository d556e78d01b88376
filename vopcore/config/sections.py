"""The sections of a config: every key, its type and what it may be."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from vopcore.methods import Method


def _absolute(path: str) -> str:
    """Ray's workers run in another folder, so a path must not depend on the current one; URIs stay."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _local(path: str) -> str:
    if "://" in path:
        raise ValueError(f"{path} is no local folder; only data.videos and storage may be URIs")
    return _absolute(path)


def _file(name: str) -> str:
    """A name of open_clip's stays; what looks like a file must be one, and becomes absolute."""
    if Path(name).suffix not in (".json", ".pt", ".pth", ".bin", ".safetensors") and "/" not in name:
        return name
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return str(path)


def _share(value: object) -> object:
    """`1%` is 0.01."""
    return float(value[:-1]) / 100 if isinstance(value, str) and value.endswith("%") else value


Location = Annotated[str, AfterValidator(_absolute)]
Folder = Annotated[str, AfterValidator(_local)]
NameOrFile = Annotated[str, AfterValidator(_file)]
Share = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


LearningRate = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the config: nothing unknown in it, nothing changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Upstream(Section):
    """How the quickstart's tiny CLIP is trained on stills, once."""

    steps: Positive = 400
    batch_size: Positive = 256
    lr: float = Field(3e-3, gt=0)


class Shapes(Section):
    """The quickstart's own world, rendered into `data.root`; left out for real videos."""

    clips: Positive = 1000  # training clips
    twins: Positive = 100  # test clips, each beside its time-reversed twin
    seed: int = Field(0, ge=0)
    upstream: Upstream = Upstream()


class Data(Section):
    """Which benchmark, and where its files are."""

    dataset: str
    root: Folder  # the annotation files
    videos: Location | None = None  # the videos, where they are not under `root`; s3:// and gs:// too
    holdout: Share = 0.0  # share of the training videos kept apart as `val`, where the data set has none


class Video(Section):
    """Which frames of a video are kept, and how."""

    frames: Positive = 12  # what the model sees
    stored_frames: Positive | None = None  # what a shard holds, at least `frames`: training picks among them
    size: Positive = 224  # pixels of the square crop
    sampler: str = "uniform"
    storage: Literal["auto", "raw", "jpeg"] = "auto"
    quality: int = Field(95, ge=1, le=100)  # of JPEG
    max_failed: Share = 0.01  # share of videos that may fail before the run stops
    time_limit: float = Field(120, gt=0)  # seconds per video
    shard_megabytes: Positive = 256

    @property
    def kept(self) -> int:
        return self.stored_frames or self.frames


class Clip(Section):
    """The frozen model: an open_clip architecture (or its JSON file) and weights (tag or checkpoint file)."""

    model: NameOrFile = "ViT-B-32-quickgelu"
    pretrained: NameOrFile | None = "openai"
    words: Positive = 77  # tokens of a caption, start and end included


class Train(Section):
    """How a method is tuned; a method's own `train:` section overrides single keys."""

    epochs: int = Field(5, ge=0)
    batch_size: Positive = 32  # over all workers
    lr: LearningRate | tuple[LearningRate, ...] = 1e-4  # several: the best on `val` by t2v R@1 is kept
    weight_decay: float = Field(0.2, ge=0)
    decay_biases_and_prompts: bool = True
    warmup: Share = 0.1  # of all steps
    clip_grad: float | None = Field(1.0, gt=0)  # largest global gradient norm
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-6, gt=0)
    captions: Literal["one", "all"] = "one"  # per epoch: one caption of each video, or every pair
    repeat_videos: bool = False  # a batch may hold a video with several captions, as CLIP4Clip's
    augment: bool = False  # a random resized crop (half to all of the area) and a flip, one for each video
    learn_logit_scale: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"  # of the towers, also when they are measured
    micro_batch: Positive | None = None  # videos of a worker that hold activations at once; null: all
    checkpoint_every: Positive | None = None  # steps; null: each epoch
    prefix_cache: Literal["bf16", "fp32"] | None = None  # keep what enters the first tuned vision block
    grad_checkpointing: bool = False  # recompute a block's activations instead of holding them


class MethodRun(Section):
    """One row of the comparison: a method with its options, its pooling and its training settings."""

    name: str
    method: Method
    pooling: Literal["mean", "query_aware"] = "mean"
    train: Train = Train()

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Evaluate(Section):
    """What is measured beside the plain numbers; each stands under its own name, such as `dsl/t2v/R1`."""

    parity: tuple[
        Literal["clip4clip", "xpool", "qb_norm"], ...
    ] = ()  # numbers as those published scripts count
    post_processing: tuple[Literal["dsl", "qb_norm"], ...] = ()
    each_epoch: bool = True  # recall on `val`, where there is one, also after each epoch: a curve


class Cache(Section):
    """Where a machine keeps shards of an object store, so that each crosses the network once."""

    folder: Folder | None = None  # on each machine's own disk; null: `vopcore-shards` in its temporary folder
    gigabytes: float = Field(100, gt=0)  # what is over is read from the store each time


class Resources(Section):
    """What one tuning run holds."""

    workers: Positive = 1
    max_workers: Positive | None = None  # elastic: as many as there is room for, from `workers` to this
    cpus_per_worker: Positive = 1
    gpu: bool = False  # one GPU per worker
    max_failures: int = Field(3, ge=0)  # restarts of a run whose worker or node died
    wait: float | None = Field(None, ge=0)  # minutes for machines to come; null: 30 if cluster.yaml has them
    cache: Cache = Cache()


class MLflow(Section):
    """Where numbers go: `uri` null means MLFLOW_TRACKING_URI, else a SQLite file in `output`."""

    uri: str | None = None
    experiment: str | None = None  # null: the config's name
    model: Literal["search", "vectors", "none"] = "search"
    """The tuned method as an MLflow model: `search` ranks the test videos too, whose vectors go with it."""


Stage = Literal["ingest", "verify", "tune"]


class RunConfig(Section):
    """Everything one `pipelines/run.py` does."""

    name: str
    output: Folder  # results and whatever has no place of its own
    storage: Location | None = None  # shards and checkpoints, s3:// and gs:// too; null: in `output`
    seed: int = Field(0, ge=0)
    run: str = ""  # a label: the same label continues a run, a new one starts anew
    stages: tuple[Stage, ...] = ("ingest", "tune")
    shapes: Shapes | None = None
    data: Data
    video: Video = Video()
    clip: Clip = Clip()
    methods: tuple[MethodRun, ...]
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()
    mlflow: MLflow = MLflow()
