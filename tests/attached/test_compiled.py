"""Models that torch.compile has compiled before something is attached."""

from typing import Any

import pytest
import torch

from interp.attached import attach
from tests.attached.architectures import make
from tests.attached.test_equality import CLOSE, SPANS, padded, part

UNDER = part("attention", heads=((0, 1), (0, 2)))


@torch.no_grad()
def logits(hf_model: Any) -> torch.Tensor:
    batch = padded("left")
    return hf_model(**batch, use_cache=False).logits[batch["attention_mask"].bool()]


class Backend:
    """Counts the runs of what it has compiled, which is run as it is."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


@pytest.mark.parametrize("inplace", [True, False])
def test_a_compiled_model_runs_as_it_is_written_meanwhile(
    plain_tokenizer: Any, inplace: bool
) -> None:
    torch._dynamo.reset()
    hf_model = make("gpt2", plain_tokenizer, n_layer=1)
    free = logits(hf_model)
    with attach(hf_model, plain_tokenizer, UNDER, at=SPANS):
        expected = logits(hf_model)
    backend = Backend()
    compiled: Any = hf_model
    if inplace:
        hf_model.compile(backend=backend)
    else:
        compiled = torch.compile(hf_model, backend=backend)
    torch.testing.assert_close(logits(compiled), free, **CLOSE)
    before = backend.runs
    assert before
    with attach(compiled, plain_tokenizer, UNDER, at=SPANS) as model:
        assert model is compiled
        torch.testing.assert_close(logits(compiled), expected, **CLOSE)
        assert backend.runs == before
    assert float((expected - free).abs().max()) > 1e-2
    torch.testing.assert_close(logits(compiled), free, **CLOSE)
    assert backend.runs > before  # it is the compiled one again
