"""Effects on quantized models are those of the same weights as numbers, and of a loop of hooks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import interp
from interp.interventions import Detection
from interp.models import HookedModel, render_chat
from interp.patching import (
    ActivationEdit,
    LogitDifference,
    TokenBatch,
    attribute_heads,
    patch,
    patch_heads,
    patch_paths,
    sweep_heads,
)
from interp.premises import Premises, load_premises
from interp.premises.encode import token_span, tokenize
from probes import probe_layers
from tests.fixtures import PLANTED_HEADS, make_planted_hf_model
from tests.quantized.conftest import CONFIGS

pytestmark = pytest.mark.bridge_only

CLEAN = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31], [40, 41, 42, 43, 44, 45]])
CORRUPTED = TokenBatch.from_lists([[5, 9, 7, 81, 30, 31], [40, 41, 52, 43, 44, 45]])
METRIC = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))
COMPONENTS = ("z", "q", "pattern", "mlp_out", "resid_mid")
COMPONENTS_OF = {
    **{"nf4": COMPONENTS, "int8": COMPONENTS},
    **{"double": ("q", "mlp_out"), "bfloat16": ("pattern", "resid_mid")},
}
"""All components of both ways to pack a weight; of their variants, some in and behind attention."""


@torch.no_grad()
def slow_loop(model: Any) -> torch.Tensor:
    """TransformerLens' own way: one whole forward pass with a hook for every head."""
    _, cache = model.run_with_cache(CLEAN.tokens, names_filter=lambda one: one.endswith("hook_z"))
    rows = []
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.attn.hook_z"
        for head in range(model.cfg.n_heads):

            def write(z: torch.Tensor, hook: Any, head: int = head, name: str = name) -> Any:
                z[:, :, head] = cache[name][:, :, head]
                return z

            logits = model.run_with_hooks(CORRUPTED.tokens, fwd_hooks=[(name, write)])
            rows.append(METRIC(logits[:, -1]))
    return torch.stack(rows, dim=1).unflatten(1, (model.cfg.n_layers, model.cfg.n_heads))


def test_the_sweep_is_the_loop_of_hooks(
    kind: str, quantized: HookedModel, twin: HookedModel
) -> None:
    """On the twin to rounding; on the model itself as far as its own products are exact."""
    found = patch_heads(quantized, CLEAN.tokens, CORRUPTED.tokens, METRIC, progress=False)
    torch.testing.assert_close(found, slow_loop(twin), rtol=0, atol=3e-5)
    close = {"bfloat16": 0.1, "int8": 0.2}.get(kind, 3e-5)
    own = slow_loop(quantized)
    torch.testing.assert_close(found, own, rtol=0, atol=close)
    assert float((own - own[:, :1, :1]).abs().max()) > 2 * close  # heads differ by more


def test_every_component(kind: str, quantized: HookedModel, twin: HookedModel) -> None:
    for component in COMPONENTS_OF[kind]:
        settings: dict[str, Any] = {"component": component, "progress": False}
        found, expected = (
            patch(one, CLEAN, CORRUPTED, METRIC, **settings) for one in (quantized, twin)
        )
        torch.testing.assert_close(found.values, expected.values, rtol=0, atol=5e-5)
        assert float(expected.values.abs().max()) > 1e-2, component


def test_the_hooked_model_alone_gives_the_same(
    quantized: HookedModel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without plain modules, where everything runs through the quantized products themselves."""
    fast = patch_heads(quantized, CLEAN.tokens, CORRUPTED.tokens, METRIC, progress=False)
    monkeypatch.setattr("interp.forward.partial.trusted_unhooked_model", lambda *_: None)
    slow = patch_heads(quantized, CLEAN.tokens, CORRUPTED.tokens, METRIC, progress=False)
    close = {"bfloat16": 0.1, "int8": 0.2}.get(kind, 3e-5)
    torch.testing.assert_close(slow, fast, rtol=0, atol=close)


def test_attribution_is_the_gradient_of_the_twin(quantized: HookedModel, twin: HookedModel) -> None:
    settings: dict[str, Any] = {"method": "attribution", "progress": False}
    found, expected = (
        patch(one, CLEAN, CORRUPTED, METRIC, **settings) for one in (quantized, twin)
    )
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=3e-5)


def test_attribution_is_the_slope_of_the_sweep(quantized: HookedModel) -> None:
    """Central differences of exact effects."""
    at, step = CORRUPTED.span_mask([(1, 4), (1, 4)]), 2e-2
    estimate = attribute_heads(
        quantized, CORRUPTED, ActivationEdit(at), metrics=[METRIC], progress=False
    )
    up, down = (
        sweep_heads(
            quantized, CORRUPTED, ActivationEdit(at, scale=1.0 - size), metrics=[METRIC],
            progress=False,
        )
        for size in (step, -step)
    )  # fmt: skip
    slope = (up - down) / (2 * step)
    assert float(slope.abs().max()) > 0.05
    torch.testing.assert_close(estimate, slope, rtol=0.03, atol=2e-3)


def test_gradients_through_the_quantized_products_themselves(
    quantized: HookedModel, twin: HookedModel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes' own backward passes; through the rounding of int8 they go straight."""
    settings: dict[str, Any] = {"method": "attribution", "progress": False}
    expected = patch(twin, CLEAN, CORRUPTED, METRIC, **settings).values
    monkeypatch.setattr("interp.forward.partial.trusted_unhooked_model", lambda *_: None)
    found = patch(quantized, CLEAN, CORRUPTED, METRIC, **settings).values
    close = {"bfloat16": 0.1, "int8": 0.2}.get(kind, 3e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=close)
    assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize("method", ["atp*", "ig"])
def test_the_other_gradient_methods(method: str, quantized: HookedModel, twin: HookedModel) -> None:
    settings: dict[str, Any] = {"method": method, "component": "z", "progress": False}
    settings |= {"steps": 2} if method == "ig" else {}
    found, expected = (
        patch(one, CLEAN, CORRUPTED, METRIC, **settings) for one in (quantized, twin)
    )
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=5e-5)


def test_path_patching(quantized: HookedModel, twin: HookedModel) -> None:
    settings: dict[str, Any] = {"receivers": [(2, 1)], "progress": False}
    found, expected = (
        patch_paths(one, CLEAN, CORRUPTED, METRIC, **settings) for one in (quantized, twin)
    )
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=5e-5, equal_nan=True)


def test_other_weights_have_other_effects(quantized: HookedModel, kind: str, tiny: Any) -> None:
    """The negative control: quantizing is seen, far above what the tests above let pass."""
    found = patch_heads(quantized, CLEAN.tokens, CORRUPTED.tokens, METRIC, progress=False)
    plain = patch_heads(tiny, CLEAN.tokens, CORRUPTED.tokens, METRIC, progress=False)
    assert float((found - plain).abs().max()) > (5e-3 if kind == "int8" else 0.1)


@pytest.fixture(scope="session")
def tiny(plain_folder: Path, plain_tokenizer: Any) -> HookedModel:
    """The model before it is quantized."""
    model = AutoModelForCausalLM.from_pretrained(plain_folder, dtype=torch.float32)
    return interp.models.from_hf(model, plain_tokenizer)


@pytest.fixture(scope="session", params=["nf4", "int8"])
def planted_quantized(
    request: pytest.FixtureRequest, word_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> HookedModel:
    """The model whose heads are known, quantized."""
    folder = tmp_path_factory.mktemp("planted")
    # Rows of whole blocks; see interp.quantized.check_unpacking.
    make_planted_hf_model(word_tokenizer, multiple=64).save_pretrained(folder)
    config = BitsAndBytesConfig(**CONFIGS[request.param])
    hf_model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    return interp.models.from_hf(hf_model, word_tokenizer, spec=f"planted {request.param}")


@pytest.mark.parametrize("method", ["activation", "attribution", "path"])
@pytest.mark.parametrize("site", ["output", "attention"])
def test_planted_heads_are_found(
    planted_quantized: HookedModel, planted_premises: Premises, method: Any, site: Any
) -> None:
    effects = interp.locate_heads(
        planted_quantized, planted_premises.first(6), method=method, site=site, progress=False
    )
    assert PLANTED_HEADS[site] in effects.ranked()[:2]


class WhereTheLandIs:
    """A detector that fires on questions whose country is not the city's, at the country."""

    def __init__(self, premises: Premises) -> None:
        self._true = {fact.subject: fact.object for fact in premises.facts}

    def detect(
        self, model: Any, questions: Any, *, system: str | None = None, progress: bool = True
    ) -> list[Detection]:
        return [self._one(model, question, system) for question in questions]

    def _one(self, model: Any, question: str, system: str | None) -> Detection:
        words = question.replace("?", " ").replace(",", " ").split()
        land = next(word for word in words if word.startswith("land"))
        city = next(word for word in words if word.startswith("city"))
        rendered = render_chat(model.tokenizer, question, system=system)
        offsets = tokenize(model.tokenizer, rendered)["offset_mapping"]
        begin, start = question.index(land), rendered.question_start
        place = (begin, begin + len(land))
        span = token_span(offsets, rendered.text, (start + place[0], start + place[1]))
        return Detection(self._true[city] != land, 0.9, place, span)


def test_a_constraint_and_its_gate(
    planted_quantized: HookedModel, planted_premises: Premises
) -> None:
    split = planted_premises.split(seed=0)
    settings: dict[str, Any] = {"random_sets": 0, "answers": False, "progress": False}
    settings |= {"heads": [PLANTED_HEADS["attention"]], "site": "attention"}
    told = interp.evaluate(planted_quantized, split.held_out, **settings)
    assert told.false.accuracy[0] < 0.2
    assert told.false.accuracy[1] > 0.9
    assert told.cost > 1e-6  # it acts on the twins as well
    detector = WhereTheLandIs(planted_premises)
    gated = interp.evaluate(
        planted_quantized, split.held_out, gate="probe", detector=detector, **settings
    )
    assert gated.false.accuracy[1] > 0.9
    assert gated.cost == 0


def test_probes_read_what_they_read_of_the_twin(quantized: HookedModel, twin: HookedModel) -> None:
    split = load_premises("capitals", limit=24).with_templates(["why", "famous"]).split(seed=0)
    settings: dict[str, Any] = {"layers": [1], "n_shuffles": 1, "progress": False}
    found, expected = (
        probe_layers(one, split.search, split.held_out, **settings) for one in (quantized, twin)
    )
    assert abs(found.scores[0].auc - expected.scores[0].auc) < 0.1
