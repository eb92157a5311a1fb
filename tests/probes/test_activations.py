"""Activations are those of the whole prompt, run alone, at the token that is asked for."""

import inspect
from typing import Any

import pytest
import torch

import interp.models
from interp.errors import UserError
from interp.models import HookedModel
from interp.premises import load_premises
from interp.premises.encode import EncodedPremises, encode_premises
from probes import collect_activations, collect_tokens
from probes.activations import prompts_to_read

TOLERANCE = 5e-5


def encoded_for(model: HookedModel) -> EncodedPremises:
    return encode_premises(model.tokenizer, load_premises("capitals", limit=5))


def collect(
    model: HookedModel, encoded: EncodedPremises, kind: Any = "false", **options: Any
) -> torch.Tensor:
    return collect_activations(model, encoded, kind, progress=False, **options)


def unchecked(function: Any) -> Any:
    """As outside the tests, where nothing checks a Literal before the function itself does."""
    return inspect.unwrap(function)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("position", ["object", "last"])
@pytest.mark.parametrize("kind", ["false", "twin"])
def test_agrees_with_each_whole_prompt_alone(family, position, kind, request, transformers_twin):
    """Against transformers' own hidden states: no batch, no padding, no hook, nothing cut off."""
    model = request.getfixturevalue(family)
    encoded = encoded_for(model)
    n_below = model.cfg.n_layers - 1  # the last hidden state has been normalised
    values = collect(model, encoded, kind, position=position, layers=range(n_below))
    assert values.shape == (len(encoded), n_below, model.cfg.d_model)
    lengths = {len(item.prompt(kind).tokens) for item in encoded.items}
    assert len(lengths) > 1  # so that there is padding
    for row, item in enumerate(encoded.items):
        prompt = item.prompt(kind)
        at = prompt.object[1] - 1 if position == "object" else len(prompt.tokens) - 1
        with torch.no_grad():
            output = transformers_twin(family)(
                input_ids=torch.tensor([prompt.tokens]), output_hidden_states=True
            )
        expected = torch.stack([state[0, at] for state in output.hidden_states[1:-1]])
        torch.testing.assert_close(values[row], expected, atol=TOLERANCE, rtol=0)


def test_the_first_layer_reads_the_object_s_last_token(tiny_llama, transformers_twin):
    encoded = encoded_for(tiny_llama)
    values = collect(tiny_llama, encoded, hook="resid_pre", layers=[0])[:, 0]
    embedding = transformers_twin("tiny_llama").get_input_embeddings().weight
    last = [item.false.tokens[item.false.object[1] - 1] for item in encoded.items]
    torch.testing.assert_close(values, embedding[last], atol=0, rtol=0)
    for item, prompt in zip(
        encoded.items, prompts_to_read(encoded.items, "false", "object"), strict=True
    ):
        assert tiny_llama.tokenizer.decode(prompt.needed).endswith(item.question.false_object)


def test_the_parts_of_a_block_add_up(tiny_gpt2):
    encoded = encoded_for(tiny_gpt2)
    pre, attn, mid, mlp, post = (
        collect(tiny_gpt2, encoded, hook=hook)
        for hook in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    )
    torch.testing.assert_close(pre + attn, mid, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(mid + mlp, post, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(post[:, :-1], pre[:, 1:], atol=0, rtol=0)
    assert attn.abs().max() > 0.01
    assert mlp.abs().max() > 0.01


def test_batches_do_not_matter_and_layers_come_as_asked(tiny_llama):
    encoded = encoded_for(tiny_llama)
    whole = collect(tiny_llama, encoded)
    one_by_one = collect(tiny_llama, encoded, batch_tokens=1, layers=[2, 0])
    torch.testing.assert_close(one_by_one, whole[:, [2, 0]], atol=TOLERANCE, rtol=0)


def test_false_and_twin_differ(tiny_llama):
    encoded = encoded_for(tiny_llama)
    false, twin = (collect(tiny_llama, encoded, kind) for kind in ("false", "twin"))
    assert ((false - twin).abs().amax(dim=(1, 2)) > 0.01).all()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"hook": "resid"}, "unknown hook 'resid'; known: resid_pre, resid_mid, resid_post"),
        ({"position": "end"}, "unknown position 'end'; known: object, last, subject, object_mean"),
        ({"kind": "masked"}, "unknown kind of prompt 'masked'; known: false, twin"),
        ({"layers": [3]}, "layer 3 does not exist: the model has 0 to 2"),
        ({"layers": [-1]}, "layer -1 does not exist"),
        ({"layers": [1, 1]}, "a layer is named twice: 1, 1"),
        ({"layers": []}, "no layers are chosen"),
    ],
)
def test_bad_input(tiny_llama, options, fault):
    kind = options.pop("kind", "false")
    with pytest.raises(UserError, match=fault):
        unchecked(collect_activations)(
            tiny_llama, encoded_for(tiny_llama), kind, progress=False, **options
        )


def test_means_are_of_each_token_of_the_span(tiny_llama):
    encoded = encoded_for(tiny_llama)
    tokens = collect_tokens(tiny_llama, encoded, "false", span="object", progress=False)
    assert len(set(torch.bincount(tokens.prompt).tolist())) > 1  # objects of several lengths
    means = collect(tiny_llama, encoded, position="object_mean")
    for row in range(len(encoded)):
        torch.testing.assert_close(means[row], tokens.values[tokens.prompt == row].mean(dim=0))
    last = tokens.values[tokens.token == -1]
    torch.testing.assert_close(last, collect(tiny_llama, encoded), atol=TOLERANCE, rtol=0)
    with pytest.raises(UserError, match="unknown span 'last'; known: object, subject"):
        unchecked(collect_tokens)(tiny_llama, encoded, "false", span="last")


def test_heads_are_read_before_the_output_projection(tiny_llama, transformers_twin):
    """What a layer's heads write, put through the projection, is what attention adds."""
    encoded = encoded_for(tiny_llama)
    z = collect(tiny_llama, encoded, hook="z")
    assert z.shape == (len(encoded), 3, 4, 8)
    added = collect(tiny_llama, encoded, hook="attn_out")
    for layer, block in enumerate(transformers_twin("tiny_llama").model.layers):
        weight = block.self_attn.o_proj.weight
        torch.testing.assert_close(
            z[:, layer].flatten(1) @ weight.T, added[:, layer], atol=TOLERANCE, rtol=0
        )


def test_no_prompts(tiny_llama):
    with pytest.raises(UserError, match="there are no prompts"):
        collect(tiny_llama, EncodedPremises(()))


def test_a_broken_model_is_named_and_left_without_hooks(hf_factory, chat_tokenizer):
    hf_model = hf_factory("llama", chat_tokenizer)
    with torch.no_grad():
        hf_model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    model = interp.models.from_hf(hf_model, chat_tokenizer)
    with pytest.raises(UserError, match="resid_post of layer 1 is not finite"):
        collect(model, encoded_for(model))
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_hooks_come_off_when_the_model_fails(hf_factory, chat_tokenizer):
    hf_model = hf_factory("llama", chat_tokenizer)
    model = interp.models.from_hf(hf_model, chat_tokenizer)
    encoded = encoded_for(model)

    def fail(*_: Any) -> None:
        if any(point.fwd_hooks for point in model.hook_dict.values()):
            raise RuntimeError("on the way")

    unembedding: Any = model.original_model.get_output_embeddings()  # type: ignore[operator]
    handle = unembedding.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on the way"):
        collect(model, encoded)
    handle.remove()
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
