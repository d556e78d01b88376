"""The sections of a config: every key, its type, what it may be and what it is for.

The docstring under a field is what `python pipelines/run.py --settings` prints beside it.
"""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from vopcore.storage import local_path

if TYPE_CHECKING:
    from vopcore.methods import Method
else:
    # importing vopcore.methods takes seconds of torch and open_clip; `read` builds and checks the method
    Method = Any


def _absolute(path: str) -> str:
    """Ray's workers run in another folder, so a path must not depend on the current one; URIs stay."""
    return path if "://" in path else str(local_path(path))


def _local(path: str) -> str:
    if "://" in path:
        raise ValueError(f"{path} is no local folder; only data.videos, storage and output may be URIs")
    return _absolute(path)


def _sizes(value: object) -> object:
    """One size or several, each named once."""
    if not isinstance(value, list):
        return value
    if not value:
        raise ValueError("names no size")
    if len(set(map(str, value))) < len(value):
        raise ValueError(f"names a size twice: {value}")
    return value


WEIGHT_SUFFIXES = (".json", ".pt", ".pth", ".bin", ".safetensors")


def _file(name: str) -> str:
    """A name of open_clip's stays; what looks like a file must be one, and becomes absolute."""
    looks_like_a_file = Path(name).suffix in WEIGHT_SUFFIXES or "/" in name
    if not looks_like_a_file:
        return name

    path = local_path(name)
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return str(path)


def _share(value: object) -> object:
    """`1%` is 0.01."""
    if not isinstance(value, str) or not value.endswith("%"):
        return value
    try:
        return float(value[:-1]) / 100
    except ValueError:
        return value  # the type's own check says what is wrong


INTERVAL = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h)")
UNITS = {
    "s": 1,
    "min": 60,
    "h": 3600,
}  # seconds


def interval_seconds(text: str) -> float:
    """`5min` is 300. Raises ValueError for what is no time."""
    matched = INTERVAL.fullmatch(text.strip())
    if matched is None:
        raise ValueError(f"must be a number of steps, or a time such as 30s, 5min or 1h; got {text}")
    number, unit = matched.groups()
    return float(number) * UNITS[unit]


def _interval(text: str) -> str:
    interval_seconds(text)
    return text


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {value}")
    return value


# no separator of paths, no quote: it is part of file names and queries
LABEL = re.compile(r"[\w.,=+@() -]*")


def _label(text: str) -> str:
    # a name is part of the names of files, of MLflow's runs and of its filters
    if not LABEL.fullmatch(text) or text.startswith(".") or len(text) > 100:
        raise ValueError(
            f"{text!r} cannot be part of a file's name; use letters, digits, spaces and . , = + @ ( ) _ -,"
            " at most 100 characters, the first no dot"
        )
    return text


RUN = re.compile(r"runs:/(\w+)(/[\w.-]+)?/?")


def _run(text: str) -> str:
    """`runs:/ID`, also of `runs:/ID/vop`, as a model of that run is called."""
    matched = RUN.fullmatch(text)
    if matched is None:
        raise ValueError(f"must be a run of MLflow, runs:/ID, got {text!r}")
    return f"runs:/{matched[1]}"


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Location = Annotated[str, AfterValidator(_absolute)]
Folder = Annotated[str, AfterValidator(_local)]
NameOrFile = Annotated[str, AfterValidator(_file)]
Label = Annotated[str, AfterValidator(_label)]
Name = Annotated[Label, AfterValidator(_not_empty)]
Share = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)]
Finite = Annotated[float, AfterValidator(_finite)]
Interval = Annotated[str, AfterValidator(_interval)]
Positive = Annotated[int, Field(ge=1)]
LearningRate = Annotated[Finite, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the config: nothing unknown in it, nothing changed after reading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        use_attribute_docstrings=True,
    )


class Pretraining(Section):
    """How the quickstart's tiny CLIP is trained on stills, once."""

    steps: Positive = 250
    """Training steps."""
    batch_size: Positive = 128
    """Stills of a step."""
    lr: LearningRate = 3e-3
    """Learning rate."""


class Shapes(Section):
    """The quickstart's own world, rendered into `data.root`; left out for real videos."""

    videos: Positive = 640
    """Training videos to render."""
    twins: Positive = 33
    """Test videos to render, each beside its time-reversed twin."""
    seed: int = Field(default=0, ge=0)
    """Which world is drawn; the same number gives the same videos."""
    pretraining: Pretraining = Pretraining()
    """How the tiny CLIP is trained on stills of that world."""


class Data(Section):
    """Which data set, and where its files are."""

    dataset: str
    """The data set: folder (your own videos), msrvtt_9k, msrvtt_7k, msrvtt_full, msvd, lsmdc, activitynet,
    didemo, vatex or webdataset (tars as video2dataset writes them)."""
    root: Folder
    """Folder of the annotation files."""
    videos: Location | None = None
    """Folder of the videos, s3:// and gs:// too; null: they are under data.root."""
    missing: Literal["refuse", "allow"] = "refuse"
    """Videos of the annotations that have no file: refuse counts them as failed (video.max_failed) before
    anything is decoded; allow goes on without them, in the test split as never found."""
    holdout: Share = 0.0
    """Share of the training videos kept apart as `val`, where the data set has no val split (5% or 0.05)."""
    follow_links: bool = False
    """Whether links below the videos' folder may lead out of it; false leaves such files out, and says so."""

    @property
    def videos_place(self) -> str:
        """The folder of the videos, or its URI."""
        return self.videos or self.root


class Video(Section):
    """Which frames of a video are kept, and how."""

    frames: Positive = 12
    """Frames of a video that the model sees."""
    stored_frames: Positive | None = None
    """Frames of a video that a shard holds, at least video.frames: training picks among them; null: as many
    as video.frames. An odd multiple of video.frames holds exactly the frames that the sampler would choose
    for a test."""
    size: Annotated[Positive | tuple[Positive, ...] | Literal["auto"], BeforeValidator(_sizes)] = "auto"
    """Side of the square crop, in pixels; auto: what clip.model sees; several, such as [224, 384]: shards of
    each are stored in one decode, for models that see different ones, and a run uses those of its model."""
    resize: Literal["shortest", "squash", "auto"] = "auto"
    """How a picture becomes that square: shortest makes its short side fit and cuts out the middle, squash
    changes its shape; auto: as clip.model was trained."""
    interpolation: Literal["bicubic", "bilinear", "auto"] = "auto"
    """How pixels are resized; auto: as clip.model was trained."""
    sampler: str = "uniform"
    """Which frames are taken: uniform, segment, clip4clip_1fps or head."""
    storage: Literal["auto", "raw", "jpeg"] = "auto"
    """How a shard holds frames; auto: raw where a video takes little room, else jpeg."""
    quality: int = Field(
        default=95,
        ge=1,
        le=100,
    )
    """Quality of stored JPEGs, 1 to 100."""
    max_failed: Share = 0.01
    """Share of videos that may fail before the run stops (1% or 0.01)."""
    time_limit: Annotated[Finite, Field(gt=0)] = 120
    """Seconds that one video may take."""
    shard_megabytes: Positive = 256
    """Size of a shard, in megabytes."""

    @property
    def kept(self) -> int:
        """Frames of a video that a shard holds."""
        return self.stored_frames or self.frames

    @property
    def side(self) -> int:
        """Of what a run sees, in pixels, once the model was asked. Raises ValueError where it was not."""
        return self.sizes[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of what is stored, in pixels; the first is what a run sees. Raises ValueError as `side`."""
        if self.size == "auto":
            raise ValueError("video.size: auto, and no model was asked what it sees")
        return self.size if isinstance(self.size, tuple) else (self.size,)

    def seen_by(self, size: int) -> "Video":
        """For a model that sees `size` pixels: that one first, where several are stored."""
        if not isinstance(self.size, tuple) or size not in self.size:
            return self
        others = [other for other in self.size if other != size]
        return self.model_copy(update={"size": (size, *others)})


class Backbone(Section):
    """The frozen CLIP: an open_clip architecture (or its JSON file) and weights (tag or checkpoint file)."""

    model: NameOrFile = "ViT-B-32-quickgelu"
    """An architecture of open_clip, or a JSON file that describes one."""
    pretrained: NameOrFile | None = "openai"
    """One of open_clip's tags or a checkpoint file; null: random weights."""
    words: Positive | Literal["auto"] = "auto"
    """Tokens of a caption, start and end included; longer captions are cut. auto: as many as clip.model
    reads.
    """

    @property
    def context(self) -> int:
        """`words`, once the model was asked. Raises ValueError where it was not."""
        if self.words == "auto":
            raise ValueError("clip.words: auto, and no model was asked how many it reads")
        return self.words


class Distill(Section):
    """A finished run that teaches: how alike captions and videos are to it is learned beside the loss."""

    teacher: Annotated[str, AfterValidator(_run)]
    """The teacher: runs:/ID of MLflow, a finished run of any method on the same shards and captions."""
    weight: Annotated[Finite, Field(gt=0)] = 1.0
    """Of the distance from the teacher's similarities, beside the loss."""


class Search(Section):
    """How `lr: search` looks for a learning rate."""

    least: LearningRate = 1e-6
    """The lowest learning rate that is tried."""
    most: LearningRate = 1e-2
    """The highest; the rates lie between the two as evenly as a logarithm sees them, drawn by the seed."""
    trials: Annotated[int, Field(ge=2)] = 16
    """How many rates are tried; after 1, 3, 9, ... epochs only those in the best third go on."""
    at_once: Positive | None = None
    """Trials side by side, each with what one worker holds; null: as many as there is room for."""


class Train(Section):
    """How a method is tuned; a method's own `train:` section overrides single keys."""

    epochs: int = Field(default=5, ge=0)
    """Passes over the training videos."""
    batch_size: Positive = 32
    """Videos of a step, over all workers: a caption is compared with so many."""
    lr: LearningRate | Literal["search"] | Annotated[tuple[LearningRate, ...], Field(min_length=1)] = 1e-4
    """Learning rate; several: each is tuned in full, and the one that is best on `val` by t2v R@1 is kept;
    search: one is looked for on `val`, as `train.search` says."""
    search: Search = Search()
    """How `lr: search` looks for a learning rate."""
    weight_decay: Annotated[Finite, Field(ge=0)] = 0.2
    """Weight decay of AdamW."""
    decay_biases_and_prompts: bool = True
    """Whether weight decay also pulls on biases, gains and prompts."""
    warmup: Annotated[Share, Field(lt=1)] = 0.1
    """Share of all steps in which the learning rate rises (10% or 0.1)."""
    clip_grad: Annotated[Finite, Field(gt=0)] | None = 1.0
    """Largest global norm of the gradient; null: no limit."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of the two moments, each in [0, 1)."""
    eps: Annotated[Finite, Field(gt=0)] = 1e-6
    """AdamW's epsilon."""
    captions: Literal["one", "all"] = "one"
    """What an epoch holds: one caption of each video, drawn anew each time, or all pairs."""
    repeat_videos: bool = False
    """Whether a batch may hold a video several times with different captions, as CLIP4Clip's may."""
    augment: bool = False
    """A random resized crop (half to all of the area of the stored square) and a flip, one for all frames of
    a video."""
    learn_logit_scale: bool = False
    """Whether CLIP's temperature is tuned too."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Loss: softmax over the batch in both directions (CLIP), or a sigmoid per pair (SigLIP; needs a model
    with a logit_bias)."""
    distill: Distill | None = None
    """A teacher; null: none."""
    mask_duplicates: bool = False
    """Whether pairs of a batch that share their caption's text or their video are not negatives."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Precision of the towers, also when they are measured; parameters and similarities stay in fp32. auto:
    bf16 on a GPU of compute capability 8.0 or more, else fp32."""
    micro_batch: Positive | Literal["auto"] | None = "auto"
    """Videos of a worker that hold activations at once; auto: as many as the GPU's memory has room for; null:
    all of its batch."""
    compile: bool = False
    """Whether torch compiles the towers' blocks: minutes at the start, then fewer passes over memory."""
    checkpoint_every: Positive | Interval | None = "5min"
    """Steps between checkpoints (200); or time between them (30s, 5min, 1h), beside those after each epoch;
    null: only those after each epoch."""
    prefix_cache: Literal["bf16", "fp32"] | None = None
    """Precision in which the input of the first tuned vision block is kept between epochs; null: not kept."""
    grad_checkpointing: bool = False
    """Whether a block's activations are computed again in the backward pass instead of being held."""


class MethodRun(Section):
    """One row of the comparison: a method with its options, its pooling and its training settings."""

    name: str
    """The method's name in METHODS."""
    method: Method
    """The method with its options."""
    merge: int = Field(0, ge=0)
    """Patches of a frame that each layer of the vision tower merges into others that are most alike (TempMe,
    ToMe); 0: none. Fewer tokens cost less, with any method that leaves the tower's own blocks as they are."""
    pooling: Literal["mean", "query_aware"] = "mean"
    """How the frames of a video become one vector: their mean, or weighed by each caption."""
    train: Train = Train()
    """Training settings of this method, over those of `train`."""


class ConfigEntry(Section):
    """Another config: its file and what is set over it."""

    file: str
    """A YAML file as `pipelines/run.py` reads it."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings over those of the file; keys may be nested or dotted."""


class Evaluate(Section):
    """What is measured beside the plain numbers; each stands under a name of its own: `dsl/t2v/R1`."""

    parity: tuple[Literal["clip4clip", "xpool", "qb_norm"], ...] = ()
    """Numbers as these published scripts count them, their flaws included."""
    post_processing: tuple[Literal["dsl", "qb_norm"], ...] = ()
    """Numbers after these rescalings of the similarities."""
    each_epoch: bool = True
    """Whether recall on `val`, where there is one, is measured after each epoch: a curve."""
    moments: bool = False
    """Whether sentences with a start and an end are searched for inside their videos: moment/R1_0.5,
    moment/mIoU (ActivityNet Captions, DiDeMo)."""
    also: tuple[ConfigEntry, ...] = ()
    """Other configs whose test splits are searched too, with this config's frames: a name beside this file
    (msvd), a file, or {file: didemo, set: {data.root: /data/didemo}}; their numbers are transfer/NAME/t2v/R1.
    """


class Cache(Section):
    """Where a machine keeps shards of an object store, so that each crosses the network once."""

    folder: Folder | None = None
    """Folder on each machine's own disk; null: `vopcore-shards` in its temporary folder."""
    gigabytes: Annotated[Finite, Field(gt=0)] = 100
    """Room for it, in gigabytes; what is beyond is read from the store each time."""


class Resources(Section):
    """What one tuning run holds."""

    workers: Positive = 1
    """Processes that tune together."""
    max_workers: Positive | None = None
    """The most processes of an elastic run, which grows from resources.workers as machines come; null: not
    elastic."""
    cpus_per_worker: Positive = 1
    """CPUs, and torch threads, of a worker."""
    gpu: bool = False
    """Whether each worker has a GPU."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts of a run whose worker or machine died."""
    wait: Annotated[Finite, Field(ge=0)] | None = None
    """Minutes to wait for machines; null: 30 if cluster.yaml could start them, else none."""
    cache: Cache = Cache()
    """Shards of an object store that a machine keeps."""


class MLflow(Section):
    """Where numbers go."""

    uri: str | None = None
    """MLflow's address; null: MLFLOW_TRACKING_URI, else a SQLite file in `output`."""
    experiment: str | None = None
    """Name of the experiment; null: the config's name."""
    model: Literal["search", "vectors", "none"] = "search"
    """What is saved as an MLflow model: `search` holds the test videos' vectors too and ranks them, `vectors`
    only embeds, `none` saves no model."""


Stage = Literal["ingest", "verify", "tune"]


class RunConfig(Section):
    """Everything one `pipelines/run.py` does."""

    name: Name
    """Name of the benchmark, in tables and in MLflow."""
    output: Location
    """Folder for results and for whatever has no place of its own, s3:// and gs:// too: then results are kept
    there at the end of each run."""
    storage: Location | None = None
    """Folder for shards and checkpoints, s3:// and gs:// too; null: in `output`."""
    seed: int = Field(default=0, ge=0)
    """Decides everything random: initial values, order, drawn captions and frames."""
    run: Label = ""
    """A label: the same label continues a run, a new one starts anew."""
    stages: tuple[Stage, ...] = ("ingest", "tune")
    """What is done: ingest decodes, verify reads every shard in full, tune trains and measures."""
    shapes: Shapes | None = None
    """The quickstart's own world; null: real videos."""
    data: Data
    """The data set."""
    video: Video = Video()
    """The frames."""
    clip: Backbone = Backbone()
    """The frozen CLIP."""
    methods: tuple[MethodRun, ...]
    """The methods to compare, by name, each with its options, `pooling` and `train`."""
    evaluate: Evaluate = Evaluate()
    """What is measured."""
    resources: Resources = Resources()
    """The machines."""
    mlflow: MLflow = MLflow()
    """Where numbers go."""
