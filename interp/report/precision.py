"""What a report says of a run's dtype: how far its numbers were from those of float32."""

from collections.abc import Mapping
from typing import Any

from interp.files.shape import Maybe, check_shape

_SHAPE = {
    **{"n_prompts": int, "against": str, "dtype": str},
    **{"largest_metric_difference": float, "largest_effect_difference": float},
}
_LEFT_OUT = {"dtype": str, "left_out": str}
_WHERE = "manifest.json: dtype_check"


def dtype_sentence(manifest: Mapping[str, Any]) -> str | None:
    """The manifest's ``dtype_check`` in words; None where it has none, as in float32."""
    found = check_shape(manifest.get("dtype_check"), Maybe(dict), _WHERE)
    if found is None:
        return None
    if "left_out" in found:
        said = check_shape(found, _LEFT_OUT, _WHERE)
        return (
            f"Computed in {said['dtype']}; the comparison with float32 was left out: "
            f"{said['left_out']}."
        )
    check_shape(found, _SHAPE, _WHERE)
    metric, effect = found["largest_metric_difference"], found["largest_effect_difference"]
    return (
        f"Computed in {found['dtype']}: on {found['n_prompts']} prompts the unedited metric is at "
        f"most {metric:.2g} from {found['against']}, an effect at most {effect:.2g}."
    )
