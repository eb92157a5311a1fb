"""Constraints on plain transformers models, without TransformerLens at run time."""

from interp.attached.attach import Attached, attach

__all__ = ["Attached", "attach"]
