"""Files from strangers: data that is read, checked and refused in one line, never run.

Everything that reads a file which somebody else may have made goes through these modules. They
bound what a file may cost (bytes, nesting, numbers, aliases) before anything is built from it, turn
what the parsers raise into `interp.errors.UserError`, and check the shape of what was parsed.
"""

from interp.moved import old_names

__getattr__ = old_names(__name__)
