"""What ships for the embedded model: a head set and a detector that have not seen one relation.

    python benchmarks/ship.py --work DIR

DIR is that of benchmarks/transfer.py, which keeps what the model knows and every relation's
effects. The relation left out, capitals, is held out by construction: its templates are in neither,
nor is any fact about one of its subjects. Writes data/models/MODEL: heads.json, the detector's
files, and their card, README.md.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transfer
import tyro

import interp
from interp.files.documents import write_atomically, write_json
from interp.heads import HeadSet, JointEffects
from interp.heads.shipped import HEADS, MODEL
from interp.premises import Premises
from interp.runs.manifest import versions
from probes.detector.support_detector import SupportDetector
from probes.detector.train import FEWEST_KNOWN, KNOWN_SHARE, train_detector

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "data" / "models"


@dataclass(frozen=True)
class Options(transfer.Options):
    """The options of benchmarks/transfer.py, and what ships."""

    left_out: str = "capitals"
    """The relation that is held out."""
    n_heads: int = 8
    """How many heads ship."""
    n_questions: int = 5000
    """Questions that the detector is trained on, false and true."""


def main(options: Options) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = interp.load_model(options.model)
    premises, effects, n_known = transfer.searched(model, options)
    rest = JointEffects(effects).without(options.left_out)
    folder = SHIPPED / options.model
    folder.mkdir(parents=True, exist_ok=True)
    heads = rest.select(count=options.n_heads)
    heads.save(folder / HEADS)
    fitted = without_subjects(well_known(premises, n_known, options), options.left_out)
    detector = train_detector(
        model,
        fitted,
        known=False,
        n_questions=options.n_questions,
        seed=options.seed,
    )
    assert isinstance(detector, SupportDetector)
    detector.save(folder)
    model_file = {"fingerprint": detector.fingerprint, "left_out": [options.left_out]}
    write_json(folder / MODEL, model_file)
    write_atomically(folder / "README.md", card(options, heads, detector, fitted))


def well_known(
    premises: dict[str, Premises], n_known: dict[str, int], options: transfer.Options
) -> dict[str, Premises]:
    """The relations of which the model knows enough of what it was asked."""
    tried = {name: len(interp.load_premises(name, limit=options.limit).facts) for name in premises}
    return {name: premises[name] for name in premises if n_known[name] >= KNOWN_SHARE * tried[name]}


def without_subjects(premises: dict[str, Premises], left_out: str) -> list[Premises]:
    """The other relations, without the facts about a subject of the one that is left out."""
    hidden = {fact.subject for fact in interp.load_premises(left_out).facts}
    kept = []
    for name, of_relation in premises.items():
        facts = tuple(fact for fact in of_relation.facts if fact.subject not in hidden)
        if name != left_out and len(facts) >= FEWEST_KNOWN:
            kept.append(replace(of_relation, facts=facts))
    return kept


def card(
    options: Options, heads: HeadSet, detector: SupportDetector, fitted: list[Premises]
) -> str:
    """The card: what it is for, what it was made from, what it was measured at, and its limits."""
    training: dict[str, Any] = detector.training
    tested = {kind: training[f"tested_{kind}"] for kind in ("false", "twins", "background")}
    names = ", ".join(f"{part.relation.name} ({len(part.facts)})" for part in fitted)
    return f"""# {options.model}: heads and detector that ship

Made by `python benchmarks/ship.py` with torch {versions()["torch"]}, seed {options.seed}.

- **For**: `interp demo`, `probes.detector_for(model)`, `interp.generate(..., gate="probe")`. They
  belong to these weights, this tokenizer and this chat template, and are refused by others.
- **Heads** (`heads.json`): {len(heads)} at site {heads.site}, {heads.chosen_by}:
  {", ".join(map(str, heads))}.
- **Detector** (`detector.json`, `detector.safetensors`, `support.json`): probes, and a test of the
  premise's support; trained on the facts that the model knows
  of {len(fitted)} relations, in four templates and eight question frames: {names}.
- **Left out**: {options.left_out}, its templates, and every fact about one of its subjects, so that
  it can be scored on.
- **Cross-validated**, relations left out in turn: AUC {training["auc"]:.3f}; fires on
  {training["fired_on_false"]:.2f} of false premises and {training["fired_on_twins"]:.3f} of their
  twins. The support is tested in {tested["false"]:.2f} of false premises, {tested["twins"]:.2f} of
  twins and {tested["background"]:.2f} of texts without a premise. Scores on left-out relations and
  on other people's questions are in docs/probes.md.
- **Limits**: English; one object a question; facts that this small model knows. It reads the
  model's activations, not the world: what the model does not know it cannot doubt.

The weights are ours, under the licence of this repository. They are derived from
SmolLM2-135M-Instruct (Apache-2.0) and from the relations in `data/relations`.
"""


if __name__ == "__main__":
    main(tyro.cli(Options))
