"""``python -m interp.harness …``: the command ``lm_eval …`` with the model type ``faithlens``."""

import sys

from interp.errors import UserError
from interp.harness.installed import register


def main() -> None:
    """Run lm-evaluation-harness' command; a user's mistake is one line and exit code 2."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
