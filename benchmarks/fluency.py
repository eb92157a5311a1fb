"""The tables of docs/fluency.md: what constraints do to the language of the answers.

False-premise questions are answered by the embedded model under its shipped heads: in full, softer,
in the prefill and a few decoding steps only, at the other site, with fewer heads, with random ones,
and behind the gates. Every answer is then read by the unconstrained model after the question's
true-premise twin, beside that model's own answer to the twin. The setting is chosen on the search
halves of some relations, and reported on one that neither the heads nor the detector have seen.

    python benchmarks/fluency.py --work DIR

DIR keeps the known facts and every setting's answers, so that an interrupted call goes on. Writes
benchmarks/results/fluency.json, and the tables into docs/fluency.md. About ten minutes of one core.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from fluency_page import FULL, NONE, described, page
from fluency_settings import Setting, settings, without
from marked import write_between

import interp
from interp.evaluation.answers import answers_under
from interp.evaluation.fluency import answer_log_probabilities
from interp.evaluation.preference import Preference, preference_under
from interp.files.documents import file_hash, write_json
from interp.heads import HeadSet, shipped_for
from interp.heads.random_sets import random_head_sets
from interp.interventions import Constraint, Intervention
from interp.interventions.gate import (
    SOFT_FLOOR,
    Gate,
    cloze_spans,
    lowest_probability,
    strengths_of,
)
from interp.premises import Premises
from interp.premises.encode import EncodedPrompt, encode_premises, encode_questions
from interp.premises.questions import QuestionKind
from interp.premises.relation import names_any
from interp.runs.manifest import versions
from interp.runs.shards import digest_of
from probes.detector.detect import detect_premises
from probes.detector.detections import PremiseDetections, spans_of

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "fluency.json"
PAGE = ROOT / "docs" / "fluency.md"
SAME_GAIN = 0.02
"""Settings that prefer the truth, and name it, at most so much less than in full count as equal."""
FOREIGN = ("Why is Paris the capital of Spain?", "Spain")
"""A question that was once answered in French under a constraint."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    work: Path
    """Folder that keeps known facts and answers."""
    model: str = "smollm2-135m"
    report: str = "capitals"
    """The relation that is reported on; its held-out half."""
    choose: tuple[str, ...] = ("languages", "landmarks")
    """Relations on whose search halves the setting is chosen."""
    limit: int = 80
    """Facts of the reported relation that are tried, best known first."""
    choose_limit: int = 30
    """Facts of each other relation that are tried."""
    subjects: int = 20
    """Held-out subjects of the reported relation, each in one of the held-out templates."""
    choose_subjects: int = 8
    """Search subjects of each other relation, likewise."""
    max_new_tokens: int = 20
    only: tuple[str, ...] = ()
    """Names of the settings that are compared, of all of them by default; none and the full one are
    always there."""
    random_sets: int = 20
    """In the null of the preference; one of them is also answered."""
    seed: int = 0


KINDS: tuple[QuestionKind, ...] = ("false", "twin")


@dataclass(frozen=True)
class Asked:
    """Questions, which are answered together.

    Attributes:
        parts: premises of some relations and templates.
        twins: whether the preference on their twins is read too.
    """

    name: str
    parts: tuple[Premises, ...]
    twins: bool

    def prompts(self, model: Any, kind: QuestionKind) -> list[EncodedPrompt]:
        """All questions of a kind."""
        each = (encode_questions(model.tokenizer, part, kind) for part in self.parts)
        return [prompt for prompts in each for prompt in prompts]


def main(options: Options) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    model = interp.load_model(options.model)
    options = replace(options, work=options.work / what_is_kept(model, options))
    options.work.mkdir(parents=True, exist_ok=True)
    every = [
        each
        for each in settings(model)
        if not options.only or each.name in (NONE, FULL, *options.only)
    ]
    chosen_on = [
        part
        for name in options.choose
        for part in parts_of(model, name, "search", options.choose_subjects, options)
    ]
    asked = Asked("search", tuple(chosen_on), twins=False)
    search = [described(measure(model, asked, each, options), options.seed) for each in every]
    best = every[choose(search)]
    parts = parts_of(model, options.report, "held_out", options.subjects, options)
    asked = Asked(options.report, tuple(parts), twins=True)
    sets = random_sets(model, every[1].under.heads[0].heads, options)
    reported = [
        replace(each, twins_too=each.twins_too or each == best)
        for each in every
        if each.everywhere or each == best
    ]
    rows = [measure(model, asked, each, options) for each in reported[:2]]
    behind = gated(model, asked, every[1:2] if options.only else (every[1], best), options)
    null = null_of(model, parts, sets, options)
    rows += [measure(model, asked, each, options) for each in reported[2:]]
    random = Intervention.of(Constraint(sets[0]))
    rows.append(measure(model, asked, Setting("8 random heads", random), options))
    rows += behind
    content = {
        **{"model": options.model, "versions": versions(), "seed": options.seed},
        **{"max_new_tokens": options.max_new_tokens, "soft_floor": SOFT_FLOOR},
        "chosen": best.name,
        "chosen_on": list(options.choose),
        "search": search,
        "reported_on": options.report,
        "rows": [described(row, options.seed) for row in rows],
        "null": null,
        "examples": [
            *examples(rows, (NONE, FULL, best.name)),
            foreign(model, [each for each in every if each.everywhere], options),
        ],
    }
    write_json(RESULTS, content)
    write_between(PAGE, "measured", page(content))


def what_is_kept(model: Any, options: Options) -> str:
    """The name of the folder for answers under these options, heads and detector."""
    shipped = shipped_for(model)
    assert shipped is not None
    of = {**asdict(options), "work": None, "only": None}
    files = sorted(path for path in shipped.folder.iterdir() if path.suffix != ".md")
    return digest_of([of, *map(file_hash, files)])[:16]


def parts_of(model: Any, name: str, part: str, count: int, options: Options) -> list[Premises]:
    """The first facts of a part of the known ones, shared out among its templates."""
    file = options.work / f"known-{name}.json"
    limit = options.limit if name == options.report else options.choose_limit
    tried = interp.load_premises(name, seed=options.seed, limit=limit)
    if not file.is_file():
        known = interp.filter_known(model, tried, progress=False)
        write_json(file, {"subjects": [fact.subject for fact in known.facts]})
    subjects = set(json.loads(file.read_text("utf-8"))["subjects"])
    known = tried.with_facts(fact for fact in tried.facts if fact.subject in subjects)
    found: Premises = getattr(known.split(seed=options.seed), part)
    facts, templates = found.facts[:count], list(found.templates)[:2]
    return [
        found.with_facts(facts[at :: len(templates)]).with_templates([template])
        for at, template in enumerate(templates)
    ]


def measure(
    model: Any,
    asked: Asked,
    setting: Setting,
    options: Options,
    detections: Sequence[PremiseDetections] | None = None,
) -> dict[str, Any]:
    """Answers and preferences under a setting, from the folder if they are there."""
    words = re.sub(r"\W+", "-", f"{asked.name}-{setting.name}")
    file = options.work / f"{words}.json"
    if file.is_file():
        return json.loads(file.read_text("utf-8"))
    under = setting.under
    none = measure(model, asked, without(), options) if under else None
    row: dict[str, Any] = {"setting": setting.name}
    for kind in KINDS:
        if kind == "false" or setting.twins_too or detections is not None:
            row |= answers_of(model, asked, under, kind, (none, detections), options)
        if kind == "false" or asked.twins:
            row |= preferences_of(model, asked, under, kind, detections, options)
    questions = [(part, each) for part in asked.parts for each in part.questions()]
    row["n"], row["subjects"] = len(questions), [each.subject for _, each in questions]
    row["questions"] = [part.fill(each, "false").text for part, each in questions]
    row["names_true"] = [
        names_any(answer, question.true_names)
        for answer, (_, question) in zip(row["answers_false"], questions, strict=True)
    ]
    twins = row["answers_twin"] if none is None else none["answers_twin"]
    prompts = asked.prompts(model, "twin")
    values = answer_log_probabilities(model, prompts, row["answers_false"])
    row["after_twin"] = [None if np.isnan(value) else float(value) for value in values]
    if none is None:
        row["own_after_twin"] = answer_log_probabilities(model, prompts, twins).tolist()
    else:
        row["own_after_twin"] = none["own_after_twin"]
    row["twins_unchanged"] = None
    if "answers_twin" in row:
        row["twins_unchanged"] = [a == b for a, b in zip(row["answers_twin"], twins, strict=True)]
    write_json(file, row)
    logger.info("%s: %s", asked.name, setting.name)
    return row


def answers_of(
    model: Any,
    asked: Asked,
    under: Intervention,
    kind: QuestionKind,
    known: tuple[dict[str, Any] | None, Sequence[PremiseDetections] | None],
    options: Options,
) -> dict[str, Any]:
    """The answers to all questions of a kind and, behind a gate, where it acted."""
    none, detections = known
    row: dict[str, Any] = {}
    acting: dict[str, Any] = {}
    if detections is not None:
        found = [each for part in detections for each in part.of(kind)]
        row[f"fired_{kind}"] = [detection.fired for detection in found]
        acting = {"spans": spans_of(found), "strengths": strengths_of(found, under.gate)}
    row[f"answers_{kind}"] = list(
        answers_under(
            model,
            asked.prompts(model, kind),
            under if under else None,
            baseline=[] if none is None else none[f"answers_{kind}"],
            max_new_tokens=options.max_new_tokens,
            progress=False,
            **acting,
        )
    )
    return row


def preferences_of(
    model: Any,
    asked: Asked,
    under: Intervention,
    kind: QuestionKind,
    detections: Sequence[PremiseDetections] | None,
    options: Options,
) -> dict[str, Any]:
    """The preferences on all questions of a kind, without the constraint and under it."""
    names = (f"prefers_{kind}", f"p_true_{kind}")
    if under and detections is None and under.heads[0].decoding_steps is not None:
        # They are read in the prefill, and do not change with the steps after it.
        full = Intervention.of(replace(under.heads[0], decoding_steps=None))
        same = measure(model, asked, Setting(FULL, full, twins_too=True), options)
        return {name: same[name] for name in names}
    found = []
    for at, premises in enumerate(asked.parts):
        encoded = encode_premises(model.tokenizer, premises)
        acting: dict[str, Any] = {}
        if detections is not None:
            of_part = detections[at]
            acting["strengths"] = strengths_of(of_part.of(kind), under.gate)
            acting["spans"] = cloze_spans(model, premises, encoded, kind=kind, detections=of_part)
        each = [under] if under else []
        found.append(
            preference_under(model, encoded, kind, interventions=each, progress=False, **acting)
        )
    values = Preference.joined(found)
    prefers = (values.logit_difference[:, -1] > 0).tolist()
    return dict(zip(names, (prefers, values.p_true[:, [0, -1]].tolist()), strict=True))


def gated(
    model: Any, asked: Asked, of: Sequence[Setting], options: Options
) -> list[dict[str, Any]]:
    """The rows of both gates, of each setting."""
    rows = []
    gates: tuple[tuple[Gate, str], ...] = (("probe", "hard"), ("soft", "soft"))
    for gate, words in gates:
        least = lowest_probability(gate)
        found = [detect_premises(model, part, least=least, progress=False) for part in asked.parts]
        for each in dict.fromkeys(of):
            under = Intervention.of(each.under, gate=gate)
            setting = Setting(f"{words} gate, {each.name}", under)
            rows.append(measure(model, asked, setting, options, found))
    return rows


def random_sets(model: Any, heads: HeadSet, options: Options) -> tuple[HeadSet, ...]:
    """Random sets, matched per layer."""
    return random_head_sets(
        heads,
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        n_sets=options.random_sets,
        seed=options.seed,
    )


def null_of(
    model: Any, parts: Sequence[Premises], sets: Sequence[HeadSet], options: Options
) -> dict[str, Any]:
    """Preference under random sets."""
    file = options.work / "null.json"
    if not file.is_file():
        found = [
            preference_under(
                model,
                encode_premises(model.tokenizer, premises),
                "false",
                interventions=[Intervention.of(Constraint(heads)) for heads in sets],
                progress=False,
            )
            for premises in parts
        ]
        write_json(file, {"accuracies": Preference.joined(found).accuracy[1:].tolist()})
    accuracies = json.loads(file.read_text("utf-8"))["accuracies"]
    return {
        "n_sets": len(accuracies),
        "mean": float(np.mean(accuracies)),
        "p95": float(np.quantile(accuracies, 0.95)),
    }


def choose(rows: Sequence[dict[str, Any]]) -> int:
    """The setting nearest to the model's own answers among those with the gain of the full one."""
    full = rows[1]
    equal = [
        index
        for index, row in enumerate(rows)
        if row["setting"] != NONE
        and all(
            row[name][0] >= full[name][0] - SAME_GAIN for name in ("prefers_true", "names_true")
        )
    ]
    return max(equal, key=lambda index: rows[index]["difference"][0])


def examples(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, str]]:
    """The first questions with their answers under some settings."""
    by = {row["setting"]: row for row in rows}
    return [
        {"question": by[NONE]["questions"][at]}
        | {name: by[name]["answers_false"][at] for name in dict.fromkeys(names)}
        for at in range(4)
    ]


def foreign(model: Any, of: Sequence[Setting], options: Options) -> dict[str, str]:
    """The answers to `FOREIGN` under some settings."""
    file, (question, words) = options.work / "foreign.json", FOREIGN
    kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for each in of:
        if each.name not in kept:
            given: dict[str, Any] = (
                {"heads": each.under, "false_object": words} if each.under else {}
            )
            kept[each.name] = interp.generate(
                model, question, max_new_tokens=options.max_new_tokens, **given
            )
            write_json(file, kept)
    return {"question": question} | {each.name: kept[each.name] for each in of}


if __name__ == "__main__":
    main(tyro.cli(Options))
