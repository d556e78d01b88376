"""The names that measured numbers go by, in MLflow, in tables and on pages; each is written here alone.

A name is `direction/number`: `t2v/R1`. Numbers after a rescaling or as a published script counts them have
that in front: `dsl/t2v/R1`, `clip4clip/v2t/MdR`; those of the val split `val/`, those of another config's
test split `transfer/NAME/`.
"""

T2V = "t2v"  # a query per caption, ranked among videos
V2T = "v2t"  # a query per video, ranked among videos' sets of captions
V2T_ALL = "v2t_all"  # a query per video, ranked among all captions

RECALL_TOPS = (1, 5, 10, 50)  # R1 ... R50, in percent
RANKS = ("R1", "R5", "R10", "MdR", "MnR")  # what papers print, in their order
LARGER_IS_BETTER = ("R1", "R5", "R10")

T2V_R1 = "t2v/R1"  # the number that methods are compared by
V2T_R1 = "v2t/R1"

# shown first wherever there is room for few
HEADLINES = ("t2v/R1", "t2v/R5", "t2v/R10", "v2t/R1")

# of the val split, after each epoch
CURVES = ("t2v/R1", "t2v/R5", "t2v/R10", "t2v/MdR", "v2t/R1")

VAL_T2V_R1 = "val/t2v/R1"  # what the best checkpoint is told by

TRAINABLE = "params/trainable"  # the costs of tuning: parameters, ...
TRAINABLE_PERCENT = "params/percent"  # ... their share of ...
PARAMETERS = "params/total"  # ... the whole model, ...
TUNING_SECONDS = "seconds/tune"
PREFIX_SECONDS = "seconds/prefix"  # ... with what the frozen blocks make of each frame, ...
SEARCH_SECONDS = "seconds/search"  # ... of all trials of a search for the learning rate together, ...
TOTAL_SECONDS = "seconds/total"  # ... with reading and evaluating, ...
PEAK_MEMORY = "memory/peak_mb"  # ... and MiB

LOSS = "train/loss"  # of a step
GRADIENT_NORM = "train/grad_norm"
LEARNING_RATE = "train/lr"
STEP_SECONDS = "train/seconds_per_step"
WAIT_SHARE = "train/wait_share"
THROUGHPUT = "train/videos_per_second"
STEP_MEMORY = "train/memory_gib"

# a search for the learning rate: what it has found, ...
FOUND_RATE = "search/found_lr"
SEARCH_EPOCHS = "search/epochs"  # ... the epochs of all of its trials, ...
SEARCH_RATE = "search/lr"  # ... and of each trial, from the lowest to the highest, its rate, ...
SEARCH_CURVE = "search/val_t2v_R1"  # ... and what it has come to

# of the stills that the quickstart's CLIP was pretrained on
UPSTREAM_R1 = "upstream/R1"

RSUM = "Rsum"  # of a direction R1 + R5 + R10, of both directions their sum
QUERIES_FOUND = "queries/found"
QUERIES_EXPECTED = "queries/expected"
GALLERY_FOUND = "gallery/found"
GALLERY_EXPECTED = "gallery/expected"

MOMENT_OVERLAPS = (0.3, 0.5, 0.7)
MOMENT_MIOU = "moment/mIoU"
MOMENT_QUERIES = "moment/queries"


def of(direction: str, number: str) -> str:
    """`t2v/R1` of `t2v` and `R1`."""
    return f"{direction}/{number}"


def val(number: str) -> str:
    """`val/t2v/R1` of `t2v/R1`."""
    return f"val/{number}"


def transfer(config: str, number: str) -> str:
    """`transfer/msvd/t2v/R1` of `msvd`, a config whose test split was searched too, and `t2v/R1`."""
    return f"transfer/{config}/{number}"


def tested_on(name: str) -> str:
    """`msvd` of `transfer/msvd/t2v/R1`; empty for any other number."""
    beginning = "transfer/"
    end = f"/{T2V_R1}"
    if name.startswith(beginning) and name.endswith(end):
        return name.removeprefix(beginning).removesuffix(end)
    return ""


def recall(top: int) -> str:
    """`R5` of 5."""
    return f"R{top}"


def moment_recall(overlap: float, top: int = 1) -> str:
    """`moment/R1_0.5`: R@1 at an overlap of 0.5; MLflow takes no `@` in a name."""
    return f"moment/R{top}_{overlap}"


def low(number: str) -> str:
    """`t2v/R1_low` of `t2v/R1`: where its 95% interval over queries begins."""
    return f"{number}_low"


def high(number: str) -> str:
    """`t2v/R1_high` of `t2v/R1`: where its 95% interval over queries ends."""
    return f"{number}_high"
