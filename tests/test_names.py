"""`import interp`: names come when they are asked for, and all of them do."""

import subprocess
import sys

import pytest

import interp


def test_every_name_is_there() -> None:
    assert set(interp._HOME_OF) <= set(interp.__all__)
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
