"""The background that a detector is fitted on: texts without a false premise.

They are questions and true statements about the facts that the model knows, and word problems.
"""

import json
from collections.abc import Iterable
from typing import TypeVar

from interp.models.hooked_model import HookedModel
from interp.premises import Premises
from interp.premises.registry import data_dir
from probes.detector.questions import BackgroundText, tokenize_question

FACT_TEXTS = 120
"""Texts of each kind about facts among the texts without a premise, at most."""
WORD_PROBLEMS = 60
"""Word problems among the texts without a premise."""

T = TypeVar("T")


def background_texts(
    model: HookedModel, premises: Iterable[Premises]
) -> tuple[BackgroundText, ...]:
    """Texts without a false premise: questions and true statements about facts, word problems.

    A fact's questions are the open one and, where its relation has one, the reverse: without it,
    the detector doubts an object whose subject it has not read ("Which city is the capital of
    Algeria?"). The word problems are those of the shipped task set `arithmetic` that adapters
    train on.
    """
    kinds: list[dict[str, tuple[str, str]]] = [{}, {}, {}]
    for of_relation in premises:
        name = of_relation.relation.name
        for fact in of_relation.facts:
            about = [of_relation.direct(fact), f"{of_relation.cloze(fact)} {fact.object}."]
            if of_relation.relation.reverse:
                about.append(of_relation.reverse(fact))
            for kind, text in zip(kinds, about, strict=False):
                kind.setdefault(text, (name, f"{name}/{fact.subject}"))
    texts: list[tuple[str, str | None, str | None]] = [
        (text, *of_fact) for kind in kinds for text, of_fact in _spread(kind.items(), FACT_TEXTS)
    ]
    path = data_dir() / "tasks" / "arithmetic" / "train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    texts += [(json.loads(line)["prompt"], None, None) for line in _spread(lines, WORD_PROBLEMS)]
    return tuple(
        BackgroundText(tokenize_question(model.tokenizer, text), name, group)
        for text, name, group in texts
    )


def _spread(items: Iterable[T], n: int) -> list[T]:
    """At most ``n`` of some things, evenly spaced."""
    found = list(items)
    step = len(found) / max(1, min(n, len(found)))
    return [found[int(step * index)] for index in range(min(n, len(found)))]
