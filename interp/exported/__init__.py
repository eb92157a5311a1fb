"""Constraints that one can hand over: directories, plain transformers models, the hub."""

from interp.exported.bake import bake_into
from interp.exported.folder import ExportedFolder, read_export
from interp.exported.hub import from_hub, push_to_hub
from interp.exported.load import load_exported

__all__ = [
    "ExportedFolder",
    "bake_into",
    "from_hub",
    "load_exported",
    "push_to_hub",
    "read_export",
]
