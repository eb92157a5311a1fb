"""Names of the nodes of TransformerLens' edges, as ours."""

from typing import Any


def lens_writer(node: Any) -> str:
    if node.kind == "embed":
        return "input"
    return f"m{node.layer}" if node.kind == "mlp_out" else f"a{node.layer}.h{node.head}"


def lens_reader(node: Any) -> str:
    if node.kind == "logits":
        return "logits"
    if node.kind == "mlp_in":
        return f"m{node.layer}"
    return f"a{node.layer}.h{node.head}<{node.kind[0]}>"
