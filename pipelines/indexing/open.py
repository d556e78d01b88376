"""Open an index to be brought up to date, or make a new one."""

from pathlib import Path

from pipelines.command.secrets import without_secrets
from pipelines.indexing import model_source
from pipelines.indexing.driver import IndexWork
from pipelines.indexing.task import DecodeSettings
from vopcore.config.search import SearchConfig
from vopcore.index import Index, IndexHeader, check_same, open_index, require_engine, write_header
from vopcore.index.encode import read_settings
from vopcore.index.header import HEADER_FILE
from vopcore.index.model import upload_model
from vopcore.storage import Store
from vopcore.video import DECODER_VERSION


def open_for_update(
    uri: str,
    root: str,
    config: SearchConfig,
    scratch: Path,
) -> tuple[Index, IndexWork]:
    """The index at `uri` of the videos below `root`, and how to work on it. scratch: an empty folder.

    The index knows the videos' URI without the keys in it, which searching takes from the environment. Raises
    BadIndexError where the index there is of other videos, weights or windows, or its engine is not
    installed.
    """
    require_engine(config.engine)
    model_folder = scratch / "model"
    facts = model_source.prepare(config, model_folder)
    settings = read_settings(model_folder)
    header = IndexHeader(
        root=without_secrets(root),
        engine=config.engine,
        dimension=facts.dimension,
        pooling=facts.pooling,
        seconds=config.seconds,
        every=config.every,
        frames=facts.frames,
        method=facts.method,
        model=Path(facts.model).name,
        backbone=facts.backbone,
        tuned=facts.tuned,
        decoder=DECODER_VERSION,
        resize=settings.resize,
        interpolation=settings.interpolation,
    )
    store = Store(uri)
    if store.exists(HEADER_FILE):
        check_same(store, header)
    else:
        # The header comes last: without it there is no index, and the next attempt begins anew.
        upload_model(model_folder, uri)
        write_header(store, header)

    decode = DecodeSettings(
        root=root,
        rule=header.rule,
        frames=settings.frames,
        size=settings.size,
        sampler=settings.sampler,
        resize=settings.resize,
        interpolation=settings.interpolation,
        time_limit=config.time_limit,
    )
    return open_index(uri), IndexWork(decode=decode, encoders=config.encoders, gpu=config.gpu)
