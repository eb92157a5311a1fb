"""``train_detector`` and ``detector_for``: train a premise detector for a model.

The model is asked which facts it knows. Questions about these run once, up to the highest candidate
layer, and their activations stay on disk while the probes are fitted.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import filelock

from interp.checked import checked
from interp.errors import UserError
from interp.models import cache_root, fingerprint
from interp.models.fingerprint import prompting_fingerprint
from interp.models.hooked_model import HookedModel
from interp.models.template_clock import template_now, template_time
from interp.premises import Premises, check_knowledge, list_relations, load_premises
from interp.premises.registry import data_dir
from interp.runs.shards import digest_of
from probes.detector.balance import balanced_questions
from probes.detector.calibration import CalibrationMethod
from probes.detector.dataset import DetectorDataset
from probes.detector.detector import SETTINGS, PremiseDetector
from probes.detector.fit import fit_detector
from probes.detector.paraphrases import framed
from probes.detector.questions import (
    BackgroundText,
    LabelledQuestion,
    label_questions,
    tokenize_question,
)
from probes.store import store_activations

logger = logging.getLogger(__name__)

FACTS = 120
"""Facts of each shipped relation that the model is asked about, best known first."""
WORD_PROBLEMS = 60
"""Word problems among the texts without a premise."""
FEWEST_KNOWN = 8
"""Relations of which the model knows fewer facts are left out."""
LAYERS = (0.4, 0.45, 0.5, 0.55, 0.6)
"""Candidate layers, as shares of the depth."""
FEW_FACTS = 100
"""With at most this many facts, paraphrases and more false objects are added, which takes time."""
DEALS = 3
"""False objects of each subject; only questions with the first one count, see `Folds`."""
DEAL_STEP = 1000
"""Distance of the seeds of one subject's false objects, so that nearby seeds give other runs."""
VERSION = 2
"""Version of the training; cached detectors of another version are trained again."""


def shipped_premises(*, facts: int = FACTS, seed: int = 0) -> tuple[Premises, ...]:
    """The shipped relations whose false object is another fact's, as far as they are tried.

    Years are left out: a neighbouring year is one token off, and small models know few.
    """
    loaded = (load_premises(name, seed=seed, limit=facts) for name in list_relations())
    return tuple(premises for premises in loaded if premises.relation.false_object == "another")


def known_premises(
    model: HookedModel, premises: Iterable[Premises], *, progress: bool = True
) -> tuple[Premises, ...]:
    """The facts of each relation that the model knows; relations with too few are left out.

    Raises UserError when none is left.
    """
    kept = []
    for of_relation in premises:
        knowledge = check_knowledge(model, of_relation, progress=progress)
        logger.info("%s: %s", of_relation.relation.name, knowledge.summary)
        if knowledge.n_known >= FEWEST_KNOWN:
            kept.append(knowledge.keep(of_relation, minimum=FEWEST_KNOWN))
    if not kept:
        raise UserError(
            f"the model knows fewer than {FEWEST_KNOWN} facts of every relation: give premises "
            "that it knows, or another model"
        )
    return tuple(kept)


def candidate_layers(model: HookedModel, shares: Sequence[float] = LAYERS) -> tuple[int, ...]:
    """The layers at these shares of the model's depth."""
    n_layers = model.cfg.n_layers
    return tuple(sorted({min(n_layers - 1, round(share * n_layers)) for share in shares}))


@checked
def train_detector(
    model: HookedModel,
    premises: Iterable[Premises] | None = None,
    *,
    known: bool = True,
    layers: Sequence[int] | None = None,
    max_false_alarms: float | None = None,
    calibration: CalibrationMethod = "platt",
    activations: Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PremiseDetector:
    """Train a detector of false premises for this model.

    Args:
        premises: questions to train on; by default the shipped relations.
        known: leave out facts that the model does not know. False for premises that have been
            filtered already.
        layers: candidates, of which cross-validation chooses one; by default some in the middle.
        max_false_alarms: share of true-premise twins, in cross-validation, on which it may fire;
            by default 1 %, and up to 5 % where there are few of them.
        activations: directory that keeps the activations for another training; by default a
            temporary one.

    Raises:
        UserError: too few facts or subjects, or activations that are not finite.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(template_time(template_now()))  # one date in all its prompts
        if activations is None:
            activations = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options: dict[str, Any] = {"seed": seed, "progress": progress}
        return fit_detector(
            collect_material(model, premises, activations, known=known, layers=layers, **options),
            fingerprint=fingerprint(model),
            prompting=prompting_fingerprint(model.tokenizer),
            max_false_alarms=max_false_alarms,
            calibration=calibration,
            **options,
        )


def collect_material(
    model: HookedModel,
    premises: Iterable[Premises] | None,
    folder: Path,
    *,
    known: bool = True,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DetectorDataset:
    """Label questions, and collect their activations in ``folder``; see `train_detector`."""
    chosen = tuple(premises) if premises is not None else shipped_premises(seed=seed)
    if known:
        chosen = known_premises(model, chosen, progress=progress)
    questions = labelled_questions(model, chosen, seed=seed)
    background = background_texts(model, chosen)
    store = store_activations(
        model,
        [text.asked.to_read for text in (*questions, *background)],
        folder,
        layers=candidate_layers(model) if layers is None else layers,
        progress=progress,
    )
    return DetectorDataset(questions, store, background=background)


def labelled_questions(
    model: HookedModel, premises: Iterable[Premises], *, seed: int = 0
) -> tuple[LabelledQuestion, ...]:
    """Every question with a false and with the true object; objects are balanced (`balance`).

    With few facts, paraphrases of the premises (`probes.detector.paraphrases`) and further false
    objects of each subject are added: a probe could memorise a single wrong object, instead of
    learning that subject and object do not match.
    """
    premises = tuple(premises)
    few = sum(len(of_relation.facts) for of_relation in premises) <= FEW_FACTS
    found: list[LabelledQuestion] = []
    for of_relation in premises:
        for asked in (of_relation, framed(of_relation)) if few else (of_relation,):
            for deal in range(DEALS if few else 1):
                questions = label_questions(
                    model.tokenizer,
                    asked,
                    balanced_questions(asked, seed=seed + DEAL_STEP * deal),
                    counts=asked is of_relation and not deal,
                )
                found += [question for question in questions if question.label or not deal]
    return tuple(found)


def background_texts(
    model: HookedModel, premises: Iterable[Premises]
) -> tuple[BackgroundText, ...]:
    """Texts without a false premise: each fact's open question and true statement, word problems.

    The word problems are those of the shipped task set `arithmetic` that adapters train on.
    """
    texts: list[tuple[str, str | None, str | None]] = []
    for of_relation in premises:
        name = of_relation.relation.name
        for fact in of_relation.facts:
            for text in (of_relation.direct(fact), f"{of_relation.cloze(fact)} {fact.object}."):
                texts.append((text, name, f"{name}/{fact.subject}"))
    path = data_dir() / "tasks" / "arithmetic" / "train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    step = max(1, len(lines) // WORD_PROBLEMS)
    texts += [(json.loads(line)["prompt"], None, None) for line in lines[::step][:WORD_PROBLEMS]]
    return tuple(
        BackgroundText(tokenize_question(model.tokenizer, text), name, group)
        for text, name, group in texts
    )


@checked
def detector_for(
    model: HookedModel, *, cache_dir: Path | None = None, progress: bool = True
) -> PremiseDetector:
    """The model's own detector: from the user's cache, or trained on the shipped relations.

    The cache, below `interp.models.cache_root`, has one directory for each model with its tokenizer
    and chat template. If two processes ask at once, one trains and the other waits.

    Raises:
        UserError: what `train_detector` refuses, or a cache that cannot be written.
    """
    digest = digest_of([fingerprint(model), prompting_fingerprint(model.tokenizer)])
    folder = cache_root(cache_dir) / "detectors" / f"{digest[:32]}-{VERSION}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
            if (folder / SETTINGS).is_file():
                try:
                    return PremiseDetector.load(folder, model=model)
                except UserError as error:
                    logger.warning("%s; training it anew", error)
            logger.info("training a premise detector for this model, once")
            detector = train_detector(model, progress=progress)
            detector.save(folder)
            return detector
    except OSError as error:
        raise UserError(
            f"cannot write the detector to {folder.parent} ({error.strerror or error}): "
            "free some space, or set FAITHLENS_CACHE to another directory"
        ) from error
