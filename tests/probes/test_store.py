"""Activations on disk: read back as they were, reused only where they fit, never half."""

import json

import pytest
import torch

import probes.store
from interp.errors import UserError
from probes import TokensToRead, store_activations
from probes.store import INDEX
from tests.probes.test_reading import PROMPTS, read_all


@pytest.fixture
def runs(monkeypatch):
    """How often the model was read."""
    seen = []
    read = probes.store.read_activations

    def counted(*args, **options):
        seen.append(True)
        return read(*args, **options)

    monkeypatch.setattr(probes.store, "read_activations", counted)
    return seen


def make(model, folder, **options):
    options = {"shard_tokens": 2, "batch_tokens": 8, "progress": False} | options
    return store_activations(model, PROMPTS, folder, **options)


def test_what_was_read_comes_back(tiny_llama, tmp_path):
    store = make(tiny_llama, tmp_path / "store")
    assert len(store.shards) > 1
    expected = read_all(tiny_llama, PROMPTS)
    for layer in range(3):
        torch.testing.assert_close(store.read(layer), expected[:, layer], atol=5e-5, rtol=0)
    rows = torch.tensor([4, 0, 4])
    assert torch.equal(store.read(1, rows=rows), store.read(1)[rows])
    assert store.prompt.tolist() == [0, 0, 1, 1, 2, 2]
    assert store.token.tolist() == [3, 4, 5, 6, 3, 4]


def test_heads_have_an_axis_of_their_own(tiny_llama, tmp_path):
    store = make(tiny_llama, tmp_path, hooks=("z", "mlp_out"), layers=[1])
    assert store.read(1, hook="z").shape == (6, 4, 8)
    assert store.read(1, hook="mlp_out").shape == (6, 32)
    with pytest.raises(UserError, match="no z of layer 0; it has z, mlp_out of layers 1"):
        store.read(0, hook="z")


def test_it_is_made_once(tiny_llama, tmp_path, runs):
    first = make(tiny_llama, tmp_path).read(2)
    assert torch.equal(make(tiny_llama, tmp_path).read(2), first)
    assert len(runs) == 1


@pytest.mark.parametrize("damage", ["byte", "missing", "unfinished", "index"])
def test_damage_is_seen_and_mended(tiny_llama, tmp_path, runs, damage):
    store = make(tiny_llama, tmp_path)
    expected = store.read(0)
    shard = tmp_path / store.shards[0][0]
    if damage == "byte":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "missing":
        shard.unlink()
    elif damage == "unfinished":
        (tmp_path / INDEX).unlink()
    else:
        (tmp_path / INDEX).write_text("{}")
    assert torch.equal(make(tiny_llama, tmp_path).read(0), expected)
    assert len(runs) == 2


def test_other_prompts_layers_or_models_make_it_anew(tiny_llama, tiny_gpt2, tmp_path, runs):
    make(tiny_llama, tmp_path)
    make(tiny_llama, tmp_path, layers=[1])
    store_activations(
        tiny_llama, [TokensToRead((5, 6), (1,))], tmp_path, layers=[1], progress=False
    )
    found = store_activations(
        tiny_gpt2, [TokensToRead((5, 6), (1,))], tmp_path, layers=[1], progress=False
    )
    assert len(runs) == 4
    assert len(found) == 1
    assert json.loads((tmp_path / INDEX).read_text())["layers"] == [1]


def test_an_interrupted_store_is_no_store(tiny_llama, tmp_path, monkeypatch):
    read = probes.store.read_activations

    def interrupted(*args, **options):
        yield next(read(*args, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(probes.store, "read_activations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tiny_llama, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / INDEX).exists()
    assert len(make(tiny_llama, tmp_path)) == 6


def test_bad_input(tiny_llama, tmp_path):
    with pytest.raises(UserError, match="shard_tokens is at least 1, not 0"):
        make(tiny_llama, tmp_path, shard_tokens=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make(tiny_llama, tmp_path / "file" / "store")
