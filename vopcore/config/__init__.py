"""One YAML file per benchmark, read into a frozen, typed RunConfig before any work starts."""

from vopcore.config.identity import backbone, fingerprint
from vopcore.config.matrix import Cell, Matrix, cells, read_matrix
from vopcore.config.read import ConfigError, read_config
from vopcore.config.sections import Evaluate, MethodRun, RunConfig, Shapes, Train
from vopcore.config.settings import settings, settings_text

__all__ = [
    "Cell",
    "ConfigError",
    "Evaluate",
    "Matrix",
    "MethodRun",
    "RunConfig",
    "Shapes",
    "Train",
    "backbone",
    "cells",
    "fingerprint",
    "read_config",
    "read_matrix",
    "settings",
    "settings_text",
]
