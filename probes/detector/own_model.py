"""A detector and its model: whose it is, and how it is taken over to a fine-tuned relative."""

from dataclasses import replace

from interp.errors import UserError
from interp.models import fingerprint, model_info
from interp.models.hooked_model import HookedModel
from interp.runs.shards import versions
from probes.detector.detector import PremiseDetector
from probes.detector.support_detector import AnyDetector, SupportDetector


def noted_model(detector: AnyDetector, model: HookedModel) -> AnyDetector:
    """The detector, which says by name which model it was trained on, and with which versions."""
    noted = {"model": model_info(model).spec, "versions": versions()}
    return replace(detector, training={**detector.training, **noted})


def for_relative(detector: AnyDetector, model: HookedModel) -> AnyDetector:
    """The detector as one of this model, with the same weights and threshold.

    How often it fires there is not known: score it before you rely on it.

    Raises:
        UserError: a model of another width or with fewer layers than the probes read.
    """
    probes = detector.probes if isinstance(detector, SupportDetector) else detector
    width = model.original_model.config.get_text_config().hidden_size
    n_layers = model_info(model).n_layers
    if probes.weight.shape[1] != width or probes.layer >= n_layers:
        raise UserError(
            f"the detector reads layer {probes.layer} of width {probes.weight.shape[1]}, and this "
            f"model has {n_layers} layers of width {width}: a relative has the same layers"
        )
    found: PremiseDetector = replace(probes, fingerprint=fingerprint(model))
    return replace(detector, probes=found) if isinstance(detector, SupportDetector) else found
