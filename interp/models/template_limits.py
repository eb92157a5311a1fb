"""Chat templates that never end, or fill the memory, are refused before they are rendered.

A template is a program that came with a model. One that can do no more than write its variables
once (no calls, no arithmetic that grows, no loop in a loop) needs no trial. Any other is tried out
once a process, in a process of its own with limits (`interp.models.template_trial`).
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
from interp.models import template_trial

SECONDS = 4
"""Of the processor, for all trials of one template; a template takes some thousandths."""
MEMORY = 2 * 2**30
LONGEST_TEXT = 200_000
"""Characters that a template may write of its own."""
_WAIT = 120
"""Seconds on the clock, where the processor's cannot be limited or others take it."""

_TURNS = [
    {"role": "system", "content": "word " * 8},
    {"role": "user", "content": "word " * 8},
    {"role": "assistant", "content": "word " * 8},
]
# What the tokenizer adds; a template that needs more raises an error of its own.
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_TRIALS = [
    {"messages": messages, "add_generation_prompt": prompt, **_TOKENS}
    for messages, prompt in ((_TURNS[:2], True), (_TURNS[1:2], True), (_TURNS[1:], False))
]

_TAME = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.For,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Concat,
    nodes.Test,
    nodes.Slice,
    nodes.Filter,
    nodes.CondExpr,
    nodes.Neg,
    nodes.Sub,
)
_TAME_FILTERS = {"trim", "length", "upper", "lower", "capitalize", "default", "first", "last"}


def check_template(template: str) -> None:
    """Raise UserError for a template that takes too long, or too much; once tried, remembered."""
    fault = _fault(template)
    if fault:
        raise UserError(
            f"the model's chat template {fault}: it is damaged or hostile; set another "
            "tokenizer.chat_template, or None"
        )


def check_length(text: str, given: int) -> str:
    """The text, if it is not much longer than the ``given`` characters of what was put in."""
    if len(text) > LONGEST_TEXT + 4 * given:
        raise UserError(
            f"the model's chat template writes {len(text)} characters around a question: it is "
            "damaged or hostile; set another tokenizer.chat_template, or None"
        )
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
        if isinstance(node, nodes.For) and (
            node.recursive or any(True for _ in node.find_all(nodes.For))
        ):
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
