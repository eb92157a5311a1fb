"""`import interp`: names come when they are asked for, and all of them do."""

import subprocess
import sys

import pytest

import interp


def test_every_name_is_there() -> None:
    assert set(interp._homes) <= set(interp.__all__)
    for name in interp.__all__:
        assert getattr(interp, name) is not None
    assert set(interp.__all__) <= set(dir(interp))


def test_modules_are_there_whether_or_not_they_are_listed() -> None:
    from interp.errors import UserError

    assert interp.errors.UserError is interp.UserError is UserError
    assert interp.forward.generate.MAX_NEW_TOKENS > 0
    with pytest.raises(AttributeError, match="has no attribute 'evalute'"):
        interp.evalute  # type: ignore[attr-defined]  # noqa: B018


def test_the_command_lines_help_waits_for_no_model_library() -> None:
    code = (
        "import sys; import interp.cli.main\n"
        "print([name for name in ('transformer_lens', 'transformers', 'peft', 'ray', 'plotly') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def fresh_process() -> list[str]:
    """What a process of its own prints, which reads the commands and then attaches heads."""
    heavy = ("transformer_lens", "transformers.modeling_utils", "peft", "bitsandbytes", "datasets")
    code = f"""
import sys; import interp.cli.commands
print([name for name in {heavy} if name in sys.modules])
from interp.models.versions import is_hooked
print(is_hooked(object()), 'transformer_lens' in sys.modules)

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from interp.heads import HeadSet
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()
ids = torch.tensor([[3, 4, 5, 6]])
with interp.attach(model, None, HeadSet(((0, 1),), "attention"), at=[(1, 2)]):
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
print("transformer_lens" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_commands_are_read_without_the_libraries_of_models(fresh_process: list[str]) -> None:
    """What reports, tables and helps import has no TransformerLens, PEFT or model of transformers.

    They come with the names that need them.
    """
    assert fresh_process[:2] == ["[]", "False False"]


def test_heads_are_attached_without_transformer_lens(fresh_process: list[str]) -> None:
    assert fresh_process[2:] == ["False"]
