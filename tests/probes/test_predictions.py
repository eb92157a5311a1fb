"""What the model expected at a token: by hand, against full runs, from a store, and refusals."""

import math

import pytest
import torch

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.partial import last_logits
from probes import TokensToRead, read_activations
from probes.activation_reader import predictions_of
from probes.store import store_activations

PROMPTS = [
    TokensToRead((5, 6, 7, 8, 9), (2, 3, 4)),
    TokensToRead((5, 6, 7, 30, 31, 32, 33), (2, 5)),
    TokensToRead((5, 6, 40, 41, 42, 43), (3, 4)),
]


def test_by_hand():
    # Probabilities 1/2, 1/4 and 1/4: entropy 1.5 bits.
    logits = torch.tensor([[2.0, 1.0, 1.0]]).repeat(2, 1) * math.log(2)
    expected = [
        [math.log(0.25), math.log(0.5), 1.5 * math.log(2)],
        [math.log(0.5), math.log(0.5), 1.5 * math.log(2)],
    ]
    torch.testing.assert_close(predictions_of(logits, torch.tensor([2, 0])), torch.tensor(expected))


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_they_are_those_of_full_runs(family, request):
    """The reference runs each prompt alone, cut before each token that is read."""
    model = request.getfixturevalue(family)
    for batch_tokens in (4096, 1):
        chunks = read_activations(
            model,
            PROMPTS,
            layers=[0],
            predictions=True,
            batch_tokens=batch_tokens,
            progress=False,
        )
        for chunk in chunks:
            assert chunk.predictions is not None
            reference = []
            for index in chunk.prompts:
                for position in PROMPTS[index].positions:
                    before = PROMPTS[index].tokens[:position]
                    logits = last_logits(model, TokenBatch.from_lists([before]))[0, -1]
                    chances = logits.double().softmax(dim=0)
                    actual = chances[PROMPTS[index].tokens[position]]
                    entropy = -(chances * chances.log()).sum()
                    highest = chances.max().log()
                    reference.append([float(actual.log()), float(highest), float(entropy)])
            torch.testing.assert_close(
                chunk.predictions, torch.tensor(reference), atol=5e-5, rtol=1e-5
            )


def test_activations_are_the_same_with_and_without(tiny_llama):
    (plain,) = read_activations(tiny_llama, PROMPTS, layers=[0, 1], progress=False)
    (beside,) = read_activations(
        tiny_llama, PROMPTS, layers=[0, 1], predictions=True, progress=False
    )
    assert plain.predictions is None
    assert plain.prompts == beside.prompts
    torch.testing.assert_close(
        plain.values["resid_post"], beside.values["resid_post"], atol=5e-5, rtol=0
    )


def test_nothing_precedes_the_first_token(tiny_llama):
    first = TokensToRead((5, 6, 7), (0, 1))
    with pytest.raises(UserError, match="nothing precedes a prompt's first token"):
        list(read_activations(tiny_llama, [first], predictions=True, progress=False))


def test_a_store_keeps_them(tiny_llama, tmp_path):
    options = {"layers": [1], "progress": False}
    stored = store_activations(tiny_llama, PROMPTS, tmp_path / "a", predictions=True, **options)
    (chunk,) = read_activations(tiny_llama, PROMPTS, predictions=True, **options)
    order = torch.tensor(chunk.prompts).argsort()
    sizes = [len(PROMPTS[index].positions) for index in chunk.prompts]
    assert chunk.predictions is not None
    parts = chunk.predictions.split(sizes)
    assert torch.equal(stored.read_predictions(), torch.cat([parts[at] for at in order]))
    again = store_activations(tiny_llama, PROMPTS, tmp_path / "a", predictions=True, **options)
    assert torch.equal(again.read_predictions(), stored.read_predictions())
    rows = torch.tensor([3, 0])
    assert torch.equal(stored.read_predictions(rows=rows), stored.read_predictions()[rows])
    without = store_activations(tiny_llama, PROMPTS, tmp_path / "b", **options)
    with pytest.raises(UserError, match="no predictions"):
        without.read_predictions()
