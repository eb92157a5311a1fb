"""``python -m interp``: the command line."""

from interp.cli import main

if __name__ == "__main__":
    main()
