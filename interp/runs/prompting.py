"""What a run's prompts depend on besides the data: the tokenizer, the chat template, the tokens.

All of it is part of a run's identity and of its manifest: the fingerprints of tokenizer and
template, the tokens that end an answer, and a digest of the rendered and tokenized prompts, which
also covers what a template reads from elsewhere, such as the date.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.forward.generate import as_end_tokens
from interp.models.fingerprint import template_fingerprint, tokenizer_fingerprint
from interp.runs.clock import MOMENT

logger = logging.getLogger(__name__)

TOKENIZER, TEMPLATE = "tokenizer_sha256", "chat_template_sha256"
PROMPTS, ENDS = "prompt_tokens_sha256", "end_tokens"
WORDS = {
    TOKENIZER: "the tokenizer",
    TEMPLATE: "the chat template",
    ENDS: "the tokens that end an answer",
    PROMPTS: "the prompts' tokens",
}
"""The names of these keys in messages; older versions did not write them."""
_FINGERPRINT = re.compile("[0-9a-f]{64}")
_LONGEST = 60


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference, in words; causes come before what follows from them.

    Keys that are not in ``now`` are not compared.
    """
    differs = (key for key in now if before.get(key) != now[key])
    key = min(differs, key=lambda key: (key == PROMPTS, key), default=None)
    if key is None:
        return None
    return f"{WORDS.get(key, key)} was {_short(before.get(key))}, now {_short(now[key])}"


def comparable(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``now`` that an older version, which wrote ``before``, recorded too."""
    return {key: now[key] for key in now if key in before or key not in WORDS}


def warn_of_older(run: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn that an older version did not record everything that now decides prompts."""
    if unknown := not_noted(before, now):
        logger.warning(
            "%s was made by an older version, which did not note %s: taken to be the same now",
            run,
            unknown,
        )


def not_noted(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first entry, in words, that an older version did not write into an identity."""
    return next((WORDS[key] for key in WORDS if key in now and key not in before), None)


def _short(value: Any) -> str:
    """A value in a message, where the beginning of a fingerprint is enough."""
    if isinstance(value, str) and _FINGERPRINT.fullmatch(value):
        return f"{value[:12]}…"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """The entries of an identity for a tokenizer and its chat template."""
    return {TOKENIZER: tokenizer_fingerprint(tokenizer), TEMPLATE: template_fingerprint(tokenizer)}


def end_tokens(hf_model: Any) -> list[int]:
    """The tokens at which a transformers model ends an answer, in order; none if it names none."""
    found = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    return [] if found is None else sorted(set(as_end_tokens(found)))


def asking_identity(hf_model: Any, tokenizer: Any) -> dict[str, Any]:
    """The entries for tokenizer, chat template, and end tokens of answers."""
    return {**tokenizer_identity(tokenizer), ENDS: end_tokens(hf_model)}


def noted_prompts(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that a manifest copies from an identity: the prompts' digest and moment."""
    return {key: recorded[key] for key in (PROMPTS, MOMENT) if key in recorded}
