"""``train_detector`` and ``detector_for``: train a premise detector for a model.

The model is asked which facts it knows. Questions about these run once, up to the highest candidate
layer, and their activations stay on disk while the probes are fitted.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import filelock

from interp.checked import checked
from interp.errors import UserError
from interp.heads.shipped import shipped_for
from interp.models import cache_root, fingerprint
from interp.models.fingerprint import prompting_fingerprint
from interp.models.hooked_model import HookedModel
from interp.models.template_clock import template_now, template_time
from interp.premises import Premises, Question, check_knowledge, list_relations, load_premises
from interp.premises.relation import frame_template
from interp.runs.shards import digest_of
from probes.detector.background import background_texts
from probes.detector.balance import balanced_questions
from probes.detector.calibration import CalibrationMethod
from probes.detector.dataset import FEWEST_RELATIONS, DetectorDataset, Folds
from probes.detector.detector import SETTINGS
from probes.detector.evidence import EXPECTATION, PROBES
from probes.detector.fit import combine, cross_fit_layers, fit_detector
from probes.detector.own_model import noted_model
from probes.detector.paraphrases import framed
from probes.detector.questions import LabelledQuestion, label_questions
from probes.detector.support import contrast
from probes.detector.support_detector import AnyDetector, load_detector
from probes.detector.support_fit import NothingToTest, fit_support
from probes.store import store_activations

logger = logging.getLogger(__name__)

FACTS = 40
"""Facts of each shipped relation that the model is asked about, best known first."""
BESIDE_FACTS = 24
"""The same for relations that are only fitted on."""
QUESTIONS = 1600
"""Questions, false and true, that are aimed at: with many facts, each is asked about through some
of the templates only."""
FEWEST_KNOWN = 8
"""Relations of which the model knows fewer facts are left out."""
KNOWN_SHARE = 0.4
"""So are shipped relations of which it knows a smaller share: where a model guesses among a few
objects, some guesses are right, and their true premises look as doubtful as false ones."""
PAIRED = "two_entities"
"""The frame that names another entity beside the premise. It is fitted on, but nothing is chosen by
it: a probe takes the two entities for subject and object ("Rome … the capital of France")."""
LAYERS = (0.4, 0.47, 0.53, 0.6)
"""Candidate layers, as shares of the depth."""
FEW_FACTS = 100
"""With at most this many facts, paraphrases and more false objects are added, which takes time."""
DEALS = 3
"""False objects of each subject; only questions with the first one count, see `Folds`."""
DEAL_STEP = 1000
"""Distance of the seeds of one subject's false objects, so that nearby seeds give other runs."""
VERSION = 5
"""Version of the training; cached detectors of another version are trained again."""


def shipped_premises(*, facts: int = FACTS, seed: int = 0) -> tuple[Premises, ...]:
    """The shipped relations whose false object is another fact's, as far as they are tried.

    Years are left out: a neighbouring year is one token off, and small models know few.
    """
    loaded = (load_premises(name, seed=seed, limit=facts) for name in list_relations())
    return tuple(premises for premises in loaded if premises.relation.false_object == "another")


def premises_beside(
    premises: Iterable[Premises], *, facts: int = BESIDE_FACTS, seed: int = 0
) -> tuple[Premises, ...]:
    """The other shipped relations, to be fitted on beside these premises.

    Facts about a subject of the premises' whole relations are left out, because they may tell what
    a held-out part asks.
    """
    relations = [part.relation for part in premises]
    names = {relation.name for relation in relations}
    subjects = {fact.subject for relation in relations for fact in relation.facts}
    kept = []
    for other in shipped_premises(facts=facts, seed=seed):
        rest = tuple(fact for fact in other.facts if fact.subject not in subjects)
        if other.relation.name not in names and len(rest) >= FEWEST_KNOWN:
            kept.append(other.with_facts(rest))
    return tuple(kept)


def known_premises(
    model: HookedModel,
    premises: Iterable[Premises],
    *,
    minimum: int = 1,
    share: float = 0.0,
    progress: bool = True,
) -> tuple[Premises, ...]:
    """The facts of each relation that the model knows.

    Relations with fewer than ``FEWEST_KNOWN``, or a smaller ``share``, are left out. Raises
    UserError when fewer than ``minimum`` relations are left.
    """
    kept = []
    for of_relation in premises:
        knowledge = check_knowledge(model, of_relation, progress=progress)
        logger.info("%s: %s", of_relation.relation.name, knowledge.summary)
        if knowledge.n_known >= max(FEWEST_KNOWN, share * len(knowledge.facts)):
            kept.append(knowledge.keep(of_relation, minimum=FEWEST_KNOWN))
    if len(kept) < minimum:
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
    beside: Iterable[Premises] = (),
    layers: Sequence[int] | None = None,
    max_false_alarms: float | None = None,
    new_relations: bool | None = None,
    calibration: CalibrationMethod = "platt",
    activations: Path | None = None,
    n_questions: int = QUESTIONS,
    support: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> AnyDetector:
    """Train a detector of false premises for this model.

    Args:
        premises: questions to train on; by default the shipped relations.
        known: leave out facts that the model does not know. False for premises that have been
            filtered already.
        beside: premises of other relations to fit on as well, as far as the model knows them. With
            ``FEWEST_RELATIONS`` in all, the weights of the evidence, calibration and threshold are
            chosen across relations, these among them; with fewer, without these.
        layers: candidates, of which cross-validation leaves out the worse ones; by default some in
            the middle.
        max_false_alarms: share of true-premise twins, in cross-validation, on which it may fire;
            by default 1 %, and up to 5 % where there are few of them. That of the support test is
            0.5 % for new relations and 1.25 % for those trained on, also of at least three twins.
        new_relations: questions of other relations than those of ``premises`` will be asked; by
            default without ``beside``.
        activations: directory that keeps the activations for another training; by default a
            temporary one.
        n_questions: questions, false and true, that are aimed at where there are many facts.
        support: what the probes suspect is tested by the support of the premise, see
            `probes.detector.support`. Where they suspect false premises only, as in one relation
            that they read without a fault, there is nothing to test and the probes decide alone.

    Raises:
        UserError: too few facts or subjects, or activations that are not finite.
    """
    beside = tuple(beside)
    if new_relations is None:
        new_relations = not beside
    with contextlib.ExitStack() as stack:
        stack.enter_context(template_time(template_now()))  # one date in all its prompts
        if activations is None:
            activations = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options: dict[str, Any] = {"seed": seed, "progress": progress}
        material = collect_material(
            model,
            premises,
            activations,
            known=known,
            beside=beside,
            layers=layers,
            n_questions=n_questions,
            **options,
        )
        chosen: dict[str, Any] = {"max_false_alarms": max_false_alarms, "calibration": calibration}
        fits = None
        if support:
            folds = Folds.suited_to(material.questions)
            fits = cross_fit_layers(material, folds, progress=progress)
        detector = fit_detector(
            material,
            fingerprint=fingerprint(model),
            prompting=prompting_fingerprint(model.tokenizer),
            fits=fits,
            **chosen,
            **options,
        )
        if fits is None:
            return noted_model(detector, model)
        scores = combine(material, fits[0], (*PROBES, *EXPECTATION))
        read = partial(contrast, model, progress=progress)
        try:
            found = fit_support(
                material, detector, scores=scores, read=read, seen=not new_relations, **chosen
            )
        except NothingToTest as error:
            logger.info("no support test: %s", error)
            return noted_model(detector, model)
        return noted_model(found, model)


def collect_material(
    model: HookedModel,
    premises: Iterable[Premises] | None,
    folder: Path,
    *,
    known: bool = True,
    beside: Iterable[Premises] = (),
    layers: Sequence[int] | None = None,
    n_questions: int = QUESTIONS,
    seed: int = 0,
    progress: bool = True,
) -> DetectorDataset:
    """Label questions, and collect their activations in ``folder``; see `train_detector`."""
    chosen = tuple(premises) if premises is not None else shipped_premises(seed=seed)
    if known:
        share = KNOWN_SHARE if premises is None else 0.0
        chosen = known_premises(model, chosen, share=share, progress=progress)
    others = known_premises(model, beside, minimum=0, share=KNOWN_SHARE, progress=progress)
    drawn: dict[str, Any] = {"n_questions": n_questions, "seed": seed}
    questions = labelled_questions(model, chosen, **drawn)
    of_others = labelled_questions(model, others, paraphrases=False, **drawn)
    if len(chosen) + len(others) < FEWEST_RELATIONS:
        of_others = tuple(replace(question, counts=False) for question in of_others)
    questions += of_others
    background = background_texts(model, (*chosen, *others))
    store = store_activations(
        model,
        [text.asked.to_read for text in (*questions, *background)],
        folder,
        layers=candidate_layers(model) if layers is None else layers,
        predictions=True,
        progress=progress,
    )
    return DetectorDataset(questions, store, background=background)


def labelled_questions(
    model: HookedModel,
    premises: Iterable[Premises],
    *,
    paraphrases: bool = True,
    n_questions: int = QUESTIONS,
    seed: int = 0,
) -> tuple[LabelledQuestion, ...]:
    """Every question with a false and with the true object; objects are balanced (`balance`).

    With few facts, paraphrases of the premises (`probes.detector.paraphrases`) and further false
    objects of each subject are added: a probe could memorise a single wrong object, instead of
    learning that subject and object do not match. With many facts, each is asked about through
    some of its templates and question frames only, so that there are about ``n_questions``.
    """
    premises = tuple(premises)
    n_facts = sum(len(of_relation.facts) for of_relation in premises)
    few = paraphrases and n_facts <= FEW_FACTS
    templates_each = max(1, n_questions // (4 * max(1, n_facts)))
    found: list[LabelledQuestion] = []
    for of_relation in premises:
        variants = [of_relation]
        if few:
            variants.append(framed(of_relation))
        elif of_relation.relation.frames:
            names = of_relation.relation.frame_names
            for chosen in ([name for name in names if name != PAIRED], [PAIRED]):
                if present := [name for name in chosen if name in names]:
                    variants.append(of_relation.in_frames(present))
        for asked in variants:
            paired = asked.templates == (frame_template(PAIRED),)
            for deal in range(DEALS if few else 1):
                drawn = balanced_questions(asked, seed=seed + DEAL_STEP * deal)
                questions = label_questions(
                    model.tokenizer,
                    asked,
                    drawn if few else _taking_turns(asked, drawn, templates_each),
                    counts=(asked is of_relation or not few) and not paired and not deal,
                )
                found += [question for question in questions if question.label or not deal]
    return tuple(found)


def _taking_turns(
    premises: Premises, questions: Iterable[Question], templates_each: int
) -> list[Question]:
    """The questions through ``templates_each`` templates a fact, in turn."""
    turn = {subject: number for number, subject in enumerate(premises.subjects)}
    place = {template: number for number, template in enumerate(premises.templates)}
    n_templates = len(place)
    return [
        question
        for question in questions
        if (place[question.template] - turn[question.subject]) % n_templates < templates_each
    ]


@checked
def detector_for(
    model: HookedModel, *, cache_dir: Path | None = None, progress: bool = True
) -> AnyDetector:
    """The model's own detector: as it ships, from the user's cache, or trained on the relations.

    One ships for the embedded model, see `interp.heads.shipped`. The cache, below
    `interp.models.cache_root`, has one directory for each model with its tokenizer and chat
    template. If two processes ask at once, one trains and the other waits.

    Raises:
        UserError: what `train_detector` refuses, or a cache that cannot be written.
    """
    if (kept := kept_detector(model, cache_dir=cache_dir)) is not None:
        return kept  # the cache may be one that cannot be written
    folder = _kept_at(model, cache_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
            if (folder / SETTINGS).is_file() and (detector := _read(folder, model)) is not None:
                return detector
            logger.warning("training a premise detector for this model, once: some minutes")
            detector = train_detector(model, progress=progress)
            detector.save(folder)
            return detector
    except OSError as error:
        raise UserError(
            f"cannot write the detector to {folder.parent} ({error.strerror or error}): "
            "free some space, or set FAITHLENS_CACHE to another directory"
        ) from error


def kept_detector(model: HookedModel, *, cache_dir: Path | None = None) -> AnyDetector | None:
    """The model's own detector as it ships, or from the user's cache; None if there is none yet."""
    if (shipped := _shipped_detector(model)) is not None:
        return shipped
    folder = _kept_at(model, cache_dir)
    return _read(folder, model) if (folder / SETTINGS).is_file() else None


def _shipped_detector(model: HookedModel) -> AnyDetector | None:
    shipped = shipped_for(model)
    return None if shipped is None else _read(shipped.folder, model)


def _kept_at(model: HookedModel, cache_dir: Path | None) -> Path:
    """Where the user's cache has the detector of such a model."""
    digest = digest_of([fingerprint(model), prompting_fingerprint(model.tokenizer)])
    return cache_root(cache_dir) / "detectors" / f"{digest[:32]}-{VERSION}"


def _read(folder: Path, model: HookedModel) -> AnyDetector | None:
    """A detector that was kept; None, with a warning, if it is damaged or does not fit."""
    try:
        return load_detector(folder, model=model)
    except UserError as error:
        logger.warning("the detector at %s is not used: %s", folder, error)
        return None
