"""Rendering chat templates as transformers does, within limits.

Templates that never end, or fill the memory, are refused before they are rendered.

A template is a program that comes with a model. One that can do no more than write its variables
once (no calls, no arithmetic that grows, no nested loops) needs no trial. Any other is tried once
per Python process, in a process of its own with limits (`interp.models.template_trial`).
"""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import ext, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from interp.errors import UserError
from interp.files.text import one_line
from interp.models import template_trial

SECONDS = 4
"""Of the processor, for all trials of one template; a template takes some thousandths."""
MEMORY = 2 * 2**30
LONGEST_TEXT = 200_000
"""Characters that a template may write of its own."""
_WAIT = 120
"""Seconds on the clock, where the processor's cannot be limited or others take it."""

_TURNS = [{"role": role, "content": "word " * 8} for role in ("system", "user", "assistant")]
# What the tokenizer adds; a template that needs more raises an error of its own.
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_TRIALS = [
    {"messages": messages, "add_generation_prompt": prompt, **_TOKENS}
    for messages, prompt in ((_TURNS[:2], True), (_TURNS[1:2], True), (_TURNS[1:], False))
]

_TAME = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Name),
    *(nodes.Const, nodes.Getattr, nodes.Getitem, nodes.Compare, nodes.Operand, nodes.And, nodes.Or),
    *(nodes.Not, nodes.Concat, nodes.Test, nodes.Slice, nodes.Filter, nodes.CondExpr, nodes.Neg),
    nodes.Sub,
)
_HOSTILE = "it is damaged or hostile; set another tokenizer.chat_template, or None"
_TAME_FILTERS = {"trim", "length", "upper", "lower", "capitalize", "default", "first", "last"}


def check_template(template: str) -> None:
    """Raise UserError for a template that takes too long, or too much; once tried, remembered."""
    fault = _fault(template)
    if fault:
        raise UserError(f"the model's chat template {fault}: {_HOSTILE}")


def check_length(text: str, given: int) -> str:
    """The text, if it is not much longer than the ``given`` characters of what was put in."""
    if len(text) > LONGEST_TEXT + 4 * given:
        written = f"writes {len(text)} characters around a question"
        raise UserError(f"the model's chat template {written}: {_HOSTILE}")
    return text


@lru_cache(maxsize=256)
def _fault(template: str) -> str:
    if len(template) > LONGEST_TEXT:
        return f"has {len(template)} characters"
    try:
        if _is_tame(template):
            return ""
    except (jinja2.TemplateError, RecursionError):
        return ""  # told where it is rendered
    return _tried(template)


def _is_tame(template: str) -> bool:
    """Whether a template can only write what it is given, each once."""
    environment = ImmutableSandboxedEnvironment(extensions=[ext.loopcontrols])
    tree = environment.parse(template)
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _TAME):
            return False
        if isinstance(node, nodes.Filter) and node.name not in _TAME_FILTERS:
            return False
        if isinstance(node, nodes.For) and (node.recursive or any(node.find_all(nodes.For))):
            return False
    return True


def _tried(template: str) -> str:
    """What is wrong with a template by a trial, or nothing."""
    given: dict[str, Any] = {
        "template": template,
        "variables": _TRIALS,
        "seconds": SECONDS,
        "memory": MEMORY,
        "longest": LONGEST_TEXT,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(Path(template_trial.__file__))],
            input=json.dumps(given).encode(),
            capture_output=True,
            timeout=_WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {_WAIT} seconds"
    except OSError:
        return ""  # no process can be started here
    if done.returncode == template_trial.TOO_LONG:
        return f"writes more than {LONGEST_TEXT} characters around a question"
    if done.returncode == template_trial.NO_MEMORY:
        return f"takes more than {MEMORY >> 30} GB of memory"
    if done.returncode < 0:  # killed
        return f"takes more than {SECONDS} seconds, or more than {MEMORY >> 30} GB of memory"
    return ""


class TemplateRefusal(Exception):
    """What a template raised, in one line."""


def template_of(tokenizer: Any) -> str:
    """The chat template that messages are rendered with; empty if there is none.

    Raises UserError where there are several, none of them the default.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        if template and "default" not in template:
            raise UserError(
                f"the tokenizer has chat templates of other uses only ({', '.join(template)}): set "
                "tokenizer.chat_template to the one that is meant"
            )
        template = template.get("default")
    return template or ""


def apply_template(
    tokenizer: Any, messages: list[dict[str, str]], *, prompt: bool, **variables: Any
) -> str:
    """The messages as text.

    Args:
        prompt: add what stands before the answer that is to come.
        variables: further ones that the template reads.

    Raises:
        UserError: a template that never ends, or writes without measure.
        TemplateRefusal: anything else that it raises.
    """
    template = template_of(tokenizer)
    check_template(template)
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, **variables
        )
    except UserError:
        raise
    except Exception as error:  # a template is a program, which can raise anything
        raise TemplateRefusal(one_line(error)) from error
    return check_length(text, sum(len(message["content"]) for message in messages))
