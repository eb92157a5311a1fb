"""The probe itself: its arithmetic, its file, and what it refuses."""

import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import interp.models
from interp.errors import UserError
from interp.files.tensor_file import write_tensor_file
from probes import LinearProbe, area_under_curve, fit_probe
from probes.linear import check_labelled, fit_direction


def fit(activations: torch.Tensor, labels: torch.Tensor, **options: Any) -> LinearProbe:
    return fit_probe(activations, labels, layer=2, fingerprint="f" * 64, **options)


def unchecked_fit(activations: torch.Tensor, labels: torch.Tensor, **options: Any) -> LinearProbe:
    """As outside the tests, where nothing checks shapes and Literals before the function does."""
    function: Any = inspect.unwrap(fit_probe)
    return function(activations, labels, layer=0, fingerprint="f", **options)


def noise(n_prompts: int, d_model: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_prompts, d_model, generator=torch.Generator().manual_seed(seed))


def alternating(n_prompts: int) -> torch.Tensor:
    return torch.arange(n_prompts) % 2


def test_two_points_by_hand():
    """Standardised, the points are +1 (label 1) and −1 (label 0), and the penalised loss

        w²/2 + 2C·log(1 + e^−w)

    is least where w = 2C/(1 + e^w): for C = (1 + e)/2 that is w = 1, and b = 0 by symmetry.
    The raw points are 5 ± 3, so in raw units the weight is 1/3 and the bias −5/3.
    """
    probe = fit(torch.tensor([[8.0], [2.0]]), torch.tensor([1, 0]), C=(1 + math.e) / 2)
    assert probe.weight.tolist() == pytest.approx([1 / 3], abs=1e-4)
    assert probe.bias == pytest.approx(-5 / 3, abs=1e-3)
    scores = probe.scores(torch.tensor([[8.0], [5.0], [2.0]]))
    assert scores.tolist() == pytest.approx([1, 0, -1], abs=1e-3)


def test_folded_weights_agree_with_the_pipeline():
    activations = noise(60, 7) * torch.tensor([1, 10, 0.1, 1, 1, 50, 1]) + torch.arange(7) * 20
    labels = alternating(60)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=2000))
    pipeline.fit(activations.double().numpy(), labels.numpy())
    others = noise(30, 7, seed=1) * 5
    expected = pipeline.decision_function(others.double().numpy())
    weight, bias = fit_direction(activations, labels, C=0.5)
    exact = others.double() @ weight + bias
    np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-9, atol=1e-9)
    scores = fit(activations, labels, C=0.5).scores(others)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_planted_direction_is_found_and_noise_is_not():
    direction = torch.nn.functional.normalize(noise(1, 64, seed=9)[0], dim=0)
    labels = alternating(200)
    plain, unseen = noise(200, 64), noise(200, 64, seed=1)
    shift = 8 * (labels.float()[:, None] - 0.5) * direction
    probe = fit(plain + shift, labels)
    assert torch.cosine_similarity(probe.weight, direction, dim=0) > 0.9
    assert area_under_curve(probe.scores(unseen + shift), labels) == 1.0
    # Label 1 scores above zero, label 0 below.
    assert probe.scores(4 * direction) > 0 > probe.scores(-4 * direction)
    control = fit(plain, labels)
    assert area_under_curve(control.scores(plain), labels) > 0.8  # it fits what it saw
    assert area_under_curve(control.scores(unseen), labels) == pytest.approx(0.5, abs=0.12)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_units_of_the_activations_do_not_matter(scale, shift):
    activations, labels = noise(40, 5).double(), alternating(40)
    plain, plain_bias = fit_direction(activations, labels)
    scaled, scaled_bias = fit_direction(activations * scale + shift, labels)
    expected = activations @ plain + plain_bias
    found = (activations * scale + shift) @ scaled + scaled_bias
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_constant_activation_counts_for_nothing():
    activations = torch.cat([noise(30, 3), torch.full((30, 1), 7.0)], dim=1)
    assert fit(activations, alternating(30)).weight[3] == 0


def test_scores_keep_the_leading_axes():
    probe = fit(noise(20, 4), alternating(20))
    grid = noise(6, 4, seed=2).reshape(2, 3, 4)
    assert probe.scores(grid).shape == (2, 3)
    torch.testing.assert_close(probe.scores(grid)[1, 2], probe.scores(grid[1, 2]))
    with pytest.raises(UserError, match="reads activations of width 4, not 5"):
        probe.scores(torch.zeros(2, 5))


def test_saved_and_loaded(tmp_path, tiny_llama, tiny_gpt2):
    probe = fit_probe(
        noise(20, 4),
        alternating(20),
        layer=1,
        fingerprint=interp.models.fingerprint(tiny_llama),
        hook="mlp_out",
        position="last",
    )
    path = probe.save(tmp_path / "probe.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["probe.safetensors"]
    loaded = LinearProbe.load(path, model=tiny_llama)
    assert torch.equal(loaded.weight, probe.weight)
    assert (loaded.bias, loaded.layer, loaded.hook) == (probe.bias, 1, "mlp_out")
    assert (loaded.position, loaded.fingerprint) == ("last", probe.fingerprint)
    LinearProbe.load(path).check_model(tiny_llama)
    with pytest.raises(UserError, match=r"was fitted on model [0-9a-f]{12}, this is"):
        LinearProbe.load(path, model=tiny_gpt2)
    assert LinearProbe.load(path).layer == 1  # unless asked, nobody compares models


def write_metadata(path: Path, **changes: str) -> None:
    metadata = {"layer": "1", "hook": "mlp_out", "position": "last", "fingerprint": "f"}
    tensors = {"weight": torch.ones(3), "bias": torch.tensor(0.0)}
    write_tensor_file(path, tensors, metadata | changes)


def test_what_is_no_probe_is_refused(tmp_path):
    path = tmp_path / "probe.safetensors"
    with pytest.raises(UserError, match=r"there is no probe at .*probe\.safetensors"):
        LinearProbe.load(path)
    path.write_bytes(b"not a probe")
    with pytest.raises(UserError, match="is not a probe"):
        LinearProbe.load(path)
    save_file({"weight": torch.ones(3)}, str(path))
    with pytest.raises(UserError, match=r"is not a probe .*checksum"):
        LinearProbe.load(path)
    write_tensor_file(path, {"weight": torch.ones(3)}, {})
    with pytest.raises(UserError, match="is not a probe"):
        LinearProbe.load(path)
    write_metadata(path, layer="first")
    with pytest.raises(UserError, match="is not a probe"):
        LinearProbe.load(path)
    write_metadata(path)
    assert LinearProbe.load(path).weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("activations", "labels", "fault"),
    [
        (torch.ones(4, 2), [1, 1, 1, 1], "only label 1 occurs: a probe needs prompts of both"),
        (torch.ones(0, 2), [], "there are no prompts"),
        (torch.ones(4, 2), [0, 1, 2, 1], "labels are 0 and 1, not 2"),
        (torch.tensor([[1.0], [math.nan]]), [0, 1], "the activations of prompt 1 are not finite"),
        (torch.tensor([[math.inf], [1.0]]), [0, 1], "the activations of prompt 0 are not finite"),
    ],
)
def test_bad_data(activations, labels, fault):
    with pytest.raises(UserError, match=fault):
        fit(activations, torch.tensor(labels, dtype=torch.long))


def test_a_label_for_each_prompt():
    unchecked: Any = inspect.unwrap(check_labelled)
    with pytest.raises(UserError, match="4 activations but 2 labels: give one for each"):
        unchecked(torch.ones(4, 2), torch.tensor([0, 1]))


def test_bad_settings():
    with pytest.raises(UserError, match="C must be above zero, got 0"):
        fit(noise(4, 2), alternating(4), C=0.0)
    probe = fit(noise(4, 2), alternating(4))
    with pytest.raises(UserError, match="layers are counted from zero, got -1"):
        replace(probe, layer=-1)
    with pytest.raises(UserError, match="weight and bias must be finite"):
        replace(probe, bias=math.nan)
    for place, fault in (
        ({"hook": "q"}, "unknown hook 'q'; known: resid_pre"),
        ({"head": 1}, "a probe of hook 'z' reads one head"),
        ({"position": "first"}, "unknown position 'first'; known: object, last"),
    ):
        with pytest.raises(UserError, match=fault):
            unchecked_fit(noise(4, 2), alternating(4), **place)


def test_the_difference_of_means_by_hand():
    """Means (3, 0) and (1, 0): standardised, the second feature has none to differ by.

    The direction is the first axis, and the projections are ±1 as in the case of two points.
    """
    activations = torch.tensor([[3.0, 1.0], [3.0, -1.0], [1.0, 1.0], [1.0, -1.0]])
    labels = torch.tensor([1, 1, 0, 0])
    # Of four points at ±1 the loss is w²/2 + 4C·log(1 + e^−w), least at w = 1 for this C.
    probe = fit(activations, labels, method="mean_difference", C=(1 + math.e) / 4)
    assert probe.weight.tolist() == pytest.approx([1, 0], abs=1e-3)
    assert probe.bias == pytest.approx(-2, abs=1e-2)


def test_equal_means_have_no_direction():
    activations = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    probe = fit(activations, torch.tensor([1, 1, 0, 0]), method="mean_difference")
    assert probe.weight.tolist() == [0]
    with pytest.raises(UserError, match="unknown method 'svm'; known: logistic, mean_difference"):
        inspect.unwrap(fit_direction)(activations, torch.tensor([1, 1, 0, 0]), method="svm")


def test_a_row_that_counts_twice_is_two_rows():
    activations, labels = noise(20, 3), alternating(20)
    counts = 1.0 + (torch.arange(20) < 5)
    weighted = fit_direction(activations, labels, counts=counts)
    # The standardisation sees each row once: give both the same one.
    standard = (activations - activations.mean(dim=0)) / activations.std(dim=0, correction=0)
    twice = torch.arange(20).repeat_interleave(counts.long())
    regression = LogisticRegression(C=0.1, max_iter=2000, tol=1e-10)
    regression.fit(standard.double()[twice].numpy(), labels[twice].numpy())
    scores = activations.double() @ weighted[0] + weighted[1]
    expected = regression.decision_function(standard.double().numpy())
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-2)


def test_a_probe_of_a_head(tmp_path):
    probe = fit(noise(8, 2), alternating(8), hook="z", head=3)
    assert LinearProbe.load(probe.save(tmp_path / "probe")).head == 3
