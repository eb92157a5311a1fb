"""Files from strangers: data that is read, checked and refused in one line, never run.

Everything that reads a file which somebody else may have made goes through here. The functions
bound what a file may cost (bytes, nesting, numbers, aliases) before anything is built from it, turn
what the parsers raise into `interp.errors.UserError`, and check the shape of what was parsed.
"""

from interp.files.fields import described, field_value, from_mapping
from interp.files.gguf_header import check_gguf
from interp.files.links import check_links, plain_name
from interp.files.shape import Maybe, check_shape
from interp.files.tables import read_table
from interp.files.tensors import (
    check_tensors,
    parse_tensors,
    read_tensor_file,
    tensor_shapes,
)
from interp.files.text import (
    PlainLoader,
    one_line,
    parse_json,
    parse_yaml,
    read_json_lines,
    read_json_object,
    read_text,
)
from interp.moved import old_names

__all__ = [
    "Maybe",
    "PlainLoader",
    "check_gguf",
    "check_links",
    "check_shape",
    "check_tensors",
    "described",
    "field_value",
    "from_mapping",
    "one_line",
    "parse_json",
    "parse_tensors",
    "parse_yaml",
    "plain_name",
    "read_json_lines",
    "read_json_object",
    "read_table",
    "read_tensor_file",
    "read_text",
    "tensor_shapes",
]

__getattr__ = old_names(__name__)
