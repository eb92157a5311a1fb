"""The planted model as a directory, for a process of its own."""

from pathlib import Path
from typing import Any

import pytest

import interp.models
from tests.fixtures import make_planted_model, make_word_tokenizer, planted_relation


def write_planted(folder: Path) -> None:
    """Config, safetensors and tokenizer."""
    tokenizer = make_word_tokenizer(planted_relation())
    kept: list[Any] = []

    def keep(hf_model: Any, *_: Any, **__: Any) -> Any:
        kept.append(hf_model)

    with pytest.MonkeyPatch.context() as patch:
        # What is planted is a transformers model; taken before it is wrapped.
        patch.setattr(interp.models, "from_hf", keep)
        make_planted_model(tokenizer)
    kept[0].save_pretrained(folder)
    tokenizer.save_pretrained(folder)
