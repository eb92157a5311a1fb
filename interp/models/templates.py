"""Rendering a chat template as transformers does, within limits."""

from typing import Any

from interp.errors import UserError
from interp.files.text import one_line
from interp.models.template_limits import check_length, check_template


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
