"""One YAML file per benchmark, read into a frozen, typed RunConfig before any work starts."""

from vopcore.config.identity import (
    UNTRAINED,
    backbone,
    fingerprint,
    is_trained,
    searches,
    training_settings,
)
from vopcore.config.matrix import Cell, Matrix, cells, draft_cells, read_matrix
from vopcore.config.read import ConfigError, complete, read_config, read_draft, read_others
from vopcore.config.sections import (
    ConfigEntry,
    Evaluate,
    MethodRun,
    RunConfig,
    Shapes,
    Train,
)
from vopcore.config.settings import settings, settings_text

__all__ = [
    "UNTRAINED",
    "Cell",
    "ConfigEntry",
    "ConfigError",
    "Evaluate",
    "Matrix",
    "MethodRun",
    "RunConfig",
    "Shapes",
    "Train",
    "backbone",
    "cells",
    "complete",
    "draft_cells",
    "fingerprint",
    "is_trained",
    "read_config",
    "read_draft",
    "read_matrix",
    "read_others",
    "searches",
    "settings",
    "settings_text",
    "training_settings",
]
