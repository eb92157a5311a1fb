"""``train_detector`` and ``detector_for``: a premise detector for a model, from the shipped facts.

The model is asked which facts it knows; questions about these are run once, up to the highest of
the candidate layers, with the activations on disk while the probes are fitted.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import filelock

from interp.checked import checked
from interp.errors import UserError
from interp.models import cache_root, fingerprint
from interp.models.hooked_model import HookedModel
from interp.models.template_clock import template_now, template_time
from interp.models.tokenizer_fingerprint import prompting_fingerprint
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
    AskedQuestion,
    BackgroundText,
    LabelledQuestion,
    ask,
    label_questions,
)
from probes.store import store_activations

logger = logging.getLogger(__name__)

FACTS = 120
"""Facts of each shipped relation that the model is asked about, best known first."""
WORD_PROBLEMS = 60
"""Among the texts without a premise."""
FEWEST_KNOWN = 8
"""A relation of which the model knows fewer facts is left out."""
LAYERS = (0.4, 0.45, 0.5, 0.55, 0.6)
"""Candidate layers as shares of the depth: where a model has read the premise."""
FEW_FACTS = 100
"""Up to so many, questions are made in more words and with more objects, which takes its time."""
DEALS = 3
"""How many false objects each subject gets; the first one's questions count, see `Folds`."""
DEAL_STEP = 1000
"""Between the seeds of one subject's false objects, so that runs of neighbouring seeds differ."""
VERSION = 2
"""Of the training; another one makes cached detectors anew."""


def shipped_premises(*, facts: int = FACTS, seed: int = 0) -> tuple[Premises, ...]:
    """The shipped relations whose false object is another fact's, as far as they are tried.

    Years are left out: a neighbouring year is one token off, and small models know few.
    """
    loaded = (load_premises(name, seed=seed, limit=facts) for name in list_relations())
    return tuple(one for one in loaded if one.relation.false_object == "another")


def known_premises(
    model: HookedModel, premises: Iterable[Premises], *, progress: bool = True
) -> tuple[Premises, ...]:
    """The facts of each relation that the model knows; relations with too few are left out.

    Raises UserError when none is left.
    """
    kept = []
    for one in premises:
        knowledge = check_knowledge(model, one, progress=progress)
        logger.info("%s: %s", one.relation.name, knowledge.summary)
        if knowledge.n_known >= FEWEST_KNOWN:
            kept.append(knowledge.keep(one, minimum=FEWEST_KNOWN))
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
        premises: questions to train on; the shipped relations by default.
        known: whether to leave out facts that the model does not know (of premises that have been
            filtered already it need not be asked again).
        layers: candidates, of which cross-validation chooses one; by default some in the middle.
        max_false_alarms: share of true-premise twins, in cross-validation, on which it may fire;
            by default 1 %, and up to 5 % where there are few of them.
        activations: a directory that keeps the activations for another training; by default they
            are in a temporary one.

    Raises:
        UserError: too few facts or subjects, or activations that are not finite.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(template_time(template_now()))  # one date in all its prompts
        if activations is None:
            activations = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return fit_detector(
            collect_material(
                model,
                premises,
                activations,
                known=known,
                layers=layers,
                seed=seed,
                progress=progress,
            ),
            fingerprint=fingerprint(model),
            prompting=prompting_fingerprint(model.tokenizer),
            max_false_alarms=max_false_alarms,
            calibration=calibration,
            seed=seed,
            progress=progress,
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
    """What a detector is fitted to: labelled questions, and their activations in ``folder``.

    Arguments and errors as `train_detector`.
    """
    chosen = tuple(premises) if premises is not None else shipped_premises(seed=seed)
    if known:
        chosen = known_premises(model, chosen, progress=progress)
    questions = labelled_questions(model, chosen, seed=seed)
    background = background_texts(model, chosen)
    store = store_activations(
        model,
        [one.asked.to_read for one in (*questions, *background)],
        folder,
        layers=candidate_layers(model) if layers is None else layers,
        progress=progress,
    )
    return DetectorDataset(questions, store, background=background)


def labelled_questions(
    model: HookedModel, premises: Iterable[Premises], *, seed: int = 0
) -> tuple[LabelledQuestion, ...]:
    """Every question with a false and with the true object; objects are balanced (`balance`).

    Of few facts, after the questions come the same premises in other words
    (`probes.detector.paraphrases`), and all of them with further false objects: what a probe should
    learn of a premise is that subject and object do not go together, and one wrong object a subject
    can be learned by heart. Many facts, of several relations, bring words and objects enough.
    """
    premises = tuple(premises)
    few = sum(len(one.facts) for one in premises) <= FEW_FACTS
    found: list[LabelledQuestion] = []
    for one in premises:
        for asked, counts in ((one, True), (framed(one), False)) if few else ((one, True),):
            for deal in range(DEALS if few else 1):
                balanced = balanced_questions(asked, seed=seed + DEAL_STEP * deal)
                labelled = label_questions(
                    model.tokenizer, asked, balanced, counts=counts and not deal
                )
                found += [each for each in labelled if each.label or not deal]
    return tuple(found)


def background_texts(
    model: HookedModel, premises: Iterable[Premises]
) -> tuple[BackgroundText, ...]:
    """Texts without a false premise: each fact's open question and true statement, word problems.

    The word problems are those of the shipped task set `arithmetic` that adapters train on.
    """

    def asked(text: str) -> AskedQuestion:
        return ask(model.tokenizer, text)

    found = []
    for one in premises:
        name = one.relation.name
        for fact in one.facts:
            for text in (one.direct(fact), f"{one.cloze(fact)} {fact.object}."):
                found.append(BackgroundText(asked(text), name, f"{name}/{fact.subject}"))
    path = data_dir() / "tasks" / "arithmetic" / "train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    step = max(1, len(lines) // WORD_PROBLEMS)
    for line in lines[::step][:WORD_PROBLEMS]:
        found.append(BackgroundText(asked(json.loads(line)["prompt"])))
    return tuple(found)


@checked
def detector_for(
    model: HookedModel, *, cache_dir: Path | None = None, progress: bool = True
) -> PremiseDetector:
    """The model's own detector: from the user's cache, or trained on the shipped relations.

    The cache is `interp.models.cache_root`'s, one directory for a model with its tokenizer and chat
    template, whatever date that writes. Two processes may ask at once: one trains, the other waits.

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
