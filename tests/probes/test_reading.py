"""One pass for all: shared beginnings, cut prompts and skipped blocks change no number."""

import pytest
import torch

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.partial import last_logits
from probes import TokensToRead, read_activations
from probes.activation_reader import _shared_beginning

TOLERANCE = 5e-5


def prompts_of(*texts: tuple[int, ...]) -> list[TokensToRead]:
    return [TokensToRead(one, tuple(range(len(one) - 2, len(one)))) for one in texts]


def read_all(model, prompts, **options):
    """Float[token layer d_model], prompt after prompt."""
    found = [torch.empty(0)] * len(prompts)
    for chunk in read_activations(model, prompts, progress=False, **options):
        sizes = [len(prompts[index].positions) for index in chunk.prompts]
        for index, part in zip(chunk.prompts, chunk.values["resid_post"].split(sizes), strict=True):
            found[index] = part
    return torch.cat(found)


PROMPTS = prompts_of((5, 6, 7, 8, 9), (5, 6, 7, 30, 31, 32, 33), (5, 6, 40, 41, 42))


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_a_shared_beginning_changes_nothing(family, request):
    model = request.getfixturevalue(family)
    assert _shared_beginning(PROMPTS) == 2
    together = read_all(model, PROMPTS)
    alone = torch.cat([read_all(model, [one]) for one in PROMPTS])
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)
    one_by_one = read_all(model, PROMPTS, batch_tokens=1)
    torch.testing.assert_close(together, one_by_one, atol=TOLERANCE, rtol=0)


def test_blocks_above_do_not_run_and_are_there_again(tiny_llama):
    batch = TokenBatch.from_lists([[5, 6, 7]])
    before = last_logits(tiny_llama, batch)
    ran = []
    handle = tiny_llama.blocks[2].mlp.register_forward_hook(lambda *_: ran.append(True))
    low = read_all(tiny_llama, PROMPTS, layers=[0, 1])
    assert not ran
    torch.testing.assert_close(low, read_all(tiny_llama, PROMPTS)[:, :2], atol=0, rtol=0)
    assert ran
    handle.remove()
    assert torch.equal(last_logits(tiny_llama, batch), before)


def test_between_chunks_the_model_is_whole(tiny_llama):
    batch = TokenBatch.from_lists([[5, 6, 7]])
    before = last_logits(tiny_llama, batch)
    for _ in read_activations(tiny_llama, PROMPTS, layers=[0], batch_tokens=1, progress=False):
        assert torch.equal(last_logits(tiny_llama, batch), before)


def test_nothing_is_shared_before_a_token_that_is_read():
    assert (
        _shared_beginning([TokensToRead((1, 2, 3, 4), (1, 3)), TokensToRead((1, 2, 3), (2,))]) == 1
    )


@pytest.mark.parametrize(
    ("positions", "fault"),
    [
        ((), "without a token to read"),
        ((2, 1), "in order"),
        ((1, 1), "in order"),
        ((3,), "position 3 is not in a prompt of 3 tokens"),
    ],
)
def test_bad_positions(positions, fault):
    with pytest.raises(UserError, match=fault):
        TokensToRead((1, 2, 3), positions)
