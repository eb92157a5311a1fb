"""A chat template tried in a process of its own; `interp.models.templates` starts this file.

A template is a program of somebody else's. Here it has limited time and memory, and whatever it
does ends with this process. Only Jinja is imported, so that a trial takes a fraction of a second.
The environment is as transformers makes it, as far as it decides what runs.

Standard input holds JSON: the template, and a list of the variables to render it with. The exit
code is 0 if all went well *or the template raised an error of its own* (rendering it for a prompt
raises the error again), and otherwise one of those below.
"""

import json
import sys
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError, ext, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

TOO_LONG, NO_MEMORY = 3, 4


def limit(seconds: int, memory: int) -> None:
    """Limit this process to so many seconds of the processor and bytes of memory."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # here, because Windows does not have it

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


class _Generation(ext.Extension):
    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def render(template: str, variables: dict[str, Any], longest: int) -> int:
    """Render a template piece by piece; the exit code."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: "01 Jan 2000"
    written = 0
    for piece in environment.from_string(template).generate(**variables):
        written += len(piece)
        if written > longest:
            return TOO_LONG
    return 0


def main() -> int:
    """Try the template of standard input."""
    given = json.load(sys.stdin)
    limit(given["seconds"], given["memory"])
    for variables in given["variables"]:
        try:
            code = render(given["template"], variables, given["longest"])
        except MemoryError:
            return NO_MEMORY
        except Exception:  # the template's own; told where it is rendered in earnest
            continue
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
