"""Fingerprints of what turns words into a model's tokens: its tokenizer, and its chat template.

A model's own fingerprint (`interp.models.fingerprint`) covers neither. The tokenizer's is the
SHA-256 of all that decides which ids a text becomes and which text ids become: vocabulary, merges,
added tokens, what is put around a text, normalizer, decoder, and the special tokens by name. How
batches are padded and cut is left out, because every call sets it anew. The chat template has a
fingerprint of its own, so that a message can say which of the two has changed.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from interp.errors import UserError

_BEGINS = '"added_tokens":'
"""Before it, a fast tokenizer's description holds how the latest call padded and cut, no more."""
_SETTINGS = ("split_special_tokens", "clean_up_tokenization_spaces")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """The fingerprint of a tokenizer, as hex, without its chat template.

    Raises UserError where there is no tokenizer.
    """
    if tokenizer is None:
        raise UserError("the model has no tokenizer: give one to interp.models.from_hf")
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    settings = {name: getattr(tokenizer, name, None) for name in _SETTINGS}
    return _sha256([_described(tokenizer), special, settings])


def template_fingerprint(tokenizer: Any) -> str | None:
    """The fingerprint of a tokenizer's chat template, as hex; None if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    return _sha256(template) if template else None


def prompting_fingerprint(tokenizer: Any) -> str:
    """One fingerprint of tokenizer and chat template, as hex."""
    return _sha256([tokenizer_fingerprint(tokenizer), template_fingerprint(tokenizer)])


def _described(tokenizer: Any) -> Any:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        whole = fast.to_str()
        return whole[max(0, whole.find(_BEGINS)) :]
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return [
        type(tokenizer).__name__,
        sorted(tokenizer.get_vocab().items()),
        sorted((number, repr(token)) for number, token in added.items()),
        _files(tokenizer),
    ]


def _files(tokenizer: Any) -> dict[str, str]:
    """The files of a slow tokenizer, which hold its merges or its model, by name."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_vocabulary(folder)
        except (NotImplementedError, AttributeError):  # it has none
            return {}
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(folder).iterdir())
        }


def _sha256(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
