"""Which seconds of which video: an index of moments, and what it answers."""

from vopcore.index.filter import FilterError, VideoFilter
from vopcore.index.header import BadIndexError, IndexHeader, check_same, read_header, write_header
from vopcore.index.index import Answer, Index, Question, open_index, open_table, require_engine
from vopcore.index.moments import Span, WindowRule
from vopcore.index.table import Candidates, IndexedVideo, MomentRows, MomentTable, VideoRows

__all__ = [
    "Answer",
    "BadIndexError",
    "Candidates",
    "FilterError",
    "Index",
    "IndexHeader",
    "IndexedVideo",
    "MomentRows",
    "MomentTable",
    "Question",
    "Span",
    "VideoFilter",
    "VideoRows",
    "WindowRule",
    "check_same",
    "open_index",
    "open_table",
    "read_header",
    "require_engine",
    "write_header",
]
