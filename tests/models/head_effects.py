"""Head effects of known weights, to compare the two major versions of TransformerLens.

``head_effects.safetensors`` beside this file holds them as TransformerLens 4 gives them, with the
fingerprint of every model; ``scripts/head_effects_reference.py`` makes it. A tensor is named
``model/method/site`` and is Float[prompt layer head].
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

import interp
from interp.heads.locate import as_encoded
from interp.models import from_hf, load_model
from interp.premises import Premises, load_premises
from tests.architectures import other_architectures
from tests.fixtures import make_hf_model, make_tokenizer

REFERENCE = Path(__file__).with_name("head_effects.safetensors")
CLOSE = 1e-3
CLOSE_TINY = 5e-5
TIE = 1e-5
"""Two heads whose mean effects differ by less have no order."""
TOP = 10

EXACT = (("path", "output"), ("activation", "output"), ("activation", "attention"))
GRADIENT = (("attribution", "output"), ("attribution", "attention"))
TINY = ("llama", "gpt2", "qwen2", "gemma3", "neox", "mistral", "qwen3")
EMBEDDED = "smollm2-135m"
FEW_LAYERS = [15, 29]
"""Of the embedded model, where few of its heads are swept exactly."""


@dataclass(frozen=True)
class Case:
    """One model and what is computed on it.

    Attributes:
        make: the hooked model, made anew.
        settings: pairs of method and site.
    """

    name: str
    make: Callable[[], Any]
    settings: tuple[tuple[Any, Any], ...]

    @property
    def close(self) -> float:
        """How far effects may be from the reference."""
        return CLOSE if self.name == EMBEDDED else CLOSE_TINY

    def premises(self, method: str) -> Premises:
        """Four prompts of different lengths; two for exact sweeps of the embedded model."""
        few = self.name == EMBEDDED and method != "attribution"
        return load_premises("capitals", limit=2).with_templates(
            ["famous"] if few else ["why", "famous"]
        )

    def effects(
        self, model: Any, *, few: bool = False
    ) -> Iterator[tuple[str, Float[Tensor, "prompt layer head"]]]:
        """By the tensor's name, the effects on ``model``.

        Of ``few`` only the first two prompts are run; of the embedded model the first, and sweeps
        edit the heads of a few layers. The others are NaN.
        """
        encoded = {
            exact: as_encoded(model, self.premises("path" if exact else "attribution"))
            for exact in (True, False)
        }
        for method, site in self.settings:
            exact = method != "attribution"
            prompts, options = encoded[exact], {}
            if few:
                embedded = self.name == EMBEDDED
                prompts = prompts.take(range(1 if embedded else 2))
                if exact and embedded:
                    heads = range(model.cfg.n_heads)
                    options["heads"] = tuple((at, head) for at in FEW_LAYERS for head in heads)
            found = interp.locate_heads(
                model, prompts, method=method, site=site, progress=False, **options
            )
            yield f"{self.name}/{method}/{site}", found.values


def _tiny(name: str) -> Any:
    tokenizer = make_tokenizer(chat=name == "llama")
    if name in ("llama", "gpt2"):
        hf_model = make_hf_model(name, tokenizer)
    else:
        hf_model = other_architectures(tokenizer)[name]
    return from_hf(hf_model, tokenizer, spec=name)


def cases() -> tuple[Case, ...]:
    """The tiny models by all methods, the embedded one by gradients and one exact sweep."""
    tiny = tuple(Case(name, lambda name=name: _tiny(name), (*EXACT, *GRADIENT)) for name in TINY)
    settings = (*GRADIENT, ("activation", "output"))
    return (*tiny, Case(EMBEDDED, lambda: load_model(EMBEDDED, device="cpu"), settings))


def read_reference() -> tuple[dict[str, Tensor], dict[str, str]]:
    """The effects by name, and the models' fingerprints."""
    with safe_open(REFERENCE, framework="pt") as file:
        effects = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fingerprints = json.loads(file.metadata()["fingerprints"])
    return effects, fingerprints


def same_top_ten(
    found: Float[Tensor, "prompt layer head"], expected: Float[Tensor, "prompt layer head"]
) -> bool:
    """Whether the ten heads with the largest mean effects are the same, in their order, or tied."""
    ours, theirs = (values.mean(dim=0).flatten() for values in (found, expected))
    ranked = [mean.argsort(descending=True, stable=True)[:TOP] for mean in (ours, theirs)]
    return bool(((theirs[ranked[0]] - theirs[ranked[1]]).abs() < TIE).all())
