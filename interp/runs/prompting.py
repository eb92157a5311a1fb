"""What a run's prompts hang on beside the data: the tokenizer, the chat template, the tokens.

All of it belongs to a run's identity and stands in its manifest: the fingerprints of tokenizer and
template, the tokens that end an answer, and a digest of the prompts as they are rendered and
tokenized, which also sees what a template reads of the world.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.forward.generate import as_end_tokens
from interp.models.tokenizer_fingerprint import template_fingerprint, tokenizer_fingerprint
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
"""What messages call these keys, which older versions did not write."""
_FINGERPRINT = re.compile("[0-9a-f]{64}")
_LONGEST = 60


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Of what differs from before the first, in words; causes stand before what follows from them.

    Keys that are not in ``now`` are not compared.
    """
    differs = (key for key in now if before.get(key) != now[key])
    key = min(differs, key=lambda key: (key == PROMPTS, key), default=None)
    if key is None:
        return None
    return f"{WORDS.get(key, key)} was {_short(before.get(key))}, now {_short(now[key])}"


def comparable(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Of now what can be compared with what an older version wrote."""
    return {key: now[key] for key in now if key in before or key not in WORDS}


def warn_of_older(run: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say that a run is read though an older version did not note all that now decides prompts."""
    if unknown := not_noted(before, now):
        logger.warning(
            "%s was made by an older version, which did not note %s: taken to be the same now",
            run,
            unknown,
        )


def not_noted(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first, in words, of what an older version did not write into an identity."""
    return next((WORDS[key] for key in WORDS if key in now and key not in before), None)


def _short(value: Any) -> str:
    """A value in a message; of a fingerprint the beginning tells enough."""
    if isinstance(value, str) and _FINGERPRINT.fullmatch(value):
        return f"{value[:12]}…"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """Fingerprints of a tokenizer and of its chat template, as an identity holds them."""
    return {
        TOKENIZER: tokenizer_fingerprint(tokenizer),
        TEMPLATE: template_fingerprint(tokenizer),
    }


def end_tokens(hf_model: Any) -> list[int]:
    """The tokens at which a transformers model ends an answer, in order; none if it names none."""
    found = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    return [] if found is None else sorted(set(as_end_tokens(found)))


def asking_identity(hf_model: Any, tokenizer: Any) -> dict[str, Any]:
    """All but the prompts themselves: tokenizer, chat template, and the ends of answers."""
    return {**tokenizer_identity(tokenizer), ENDS: end_tokens(hf_model)}


def noted_prompts(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest takes over from a run's identity: the prompts' digest, and their moment."""
    return {key: recorded[key] for key in (PROMPTS, MOMENT) if key in recorded}
