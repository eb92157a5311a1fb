"""A tokenizer that knows our names as one token each."""

import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interp.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES


@pytest.fixture(scope="session")
def name_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    text = " ".join([*TEMPLATES.values(), *NAMES, *PLACES, *OBJECTS])
    words = dict.fromkeys(["<unk>", *re.findall(r"\w+|[^\w\s]", text)])
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
