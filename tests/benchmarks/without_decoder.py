"""Stands in for PyAV on a machine that has none, for what decodes nothing. Imported before vopcore."""

import importlib.util
import sys
from unittest.mock import MagicMock

# What vopcore imports of it.
MODULES = (
    "av",
    "av.error",
    "av.logging",
    "av.packet",
    "av.sidedata",
    "av.sidedata.sidedata",
    "av.stream",
    "av.video",
    "av.video.reformatter",
)

if importlib.util.find_spec("av") is None:
    for module in MODULES:
        sys.modules[module] = MagicMock()
