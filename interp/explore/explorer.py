"""``Explorer``: ask a model questions with and without some of its heads.

question → detection → head set → constraint → two answers. Slow results that do not change (the
detector, the mean outputs, the answers without a constraint) are cached.
"""

import re
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.explore.answers import Answer, Answers, FoundPremise
from interp.figures.evaluation import head_heatmap
from interp.figures.tables import rows_of_site, where
from interp.forward.generate import MAX_NEW_TOKENS, generate_tokens
from interp.heads.headset import Head, HeadSet, Site, check_site
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.interventions.context import constrain
from interp.interventions.generate import last_mention, named_span
from interp.interventions.head_constraint import SITE_MODES, Constraint, Mode
from interp.lazy import go, pd
from interp.models import model_info, render_chat
from interp.models.hooked_model import HookedModel
from interp.premises.encode import tokenize
from interp.premises.joint import AnySplit
from interp.premises.relation import names
from probes.detector.detect import detect
from probes.detector.detections import Detector
from probes.detector.train import detector_for

_HEAD = re.compile(r"\(?\s*(\d{1,9})\s*[.,:]\s*(\d{1,9})\s*\)?\s*(?:[,;]\s*|\s+|$)")


class Explorer:
    """A model, the effects of its heads, and a detector of false premises.

    Args:
        model: a hooked model.
        heads: one row for each head and site, with the columns of ``heads.csv``.
        split: the premises of the search, needed for mode ``mean``, whose means are over the search
            part, and for examples, which are from the held-out part.
        detector: finds the false words of a question, or a function that makes the detector when
            it is first needed; by default ``probes.detector_for(model)``.
        start: the first constraint on a page; by default the selected heads of the first site, or
            those of the three largest effects, with mode ``zero``.
        max_new_tokens: the maximum length of an answer.
    """

    def __init__(
        self,
        model: HookedModel,
        heads: "pd.DataFrame",
        *,
        split: AnySplit | None = None,
        detector: Detector | Callable[[], Detector] | None = None,
        start: Constraint | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self.model = model
        self.heads = heads
        self.split = split
        self.max_new_tokens = max_new_tokens
        self.start = start or Constraint(self._first_heads())
        self._detector = detector or partial(detector_for, model)
        self._baselines: dict[str, Answer] = {}

    @property
    def name(self) -> str:
        """The spec that the model was loaded from."""
        return model_info(self.model).spec

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites with effects."""
        return tuple(cast(Site, str(site)) for site in self.heads["site"].unique())

    @property
    def detector_is_ready(self) -> bool:
        """Whether the detector has been made."""
        return isinstance(self._detector, Detector)

    def modes(self, site: Site) -> tuple[Mode, ...]:
        """The modes of a site."""
        check_site(site)
        return tuple(mode for mode in SITE_MODES[site] if mode != "mean" or self.split is not None)

    def n_heads(self, site: Site) -> int:
        """The number of heads with an effect at a site."""
        return len(rows_of_site(self.heads, site))

    def top(self, site: Site, count: int) -> HeadSet:
        """The heads with the largest effects at a site. Raises UserError for too many."""
        rows = rows_of_site(self.heads, site).sort_values("rank")
        if not 0 <= count <= len(rows):
            raise UserError(f"cannot choose {count} of {len(rows)} heads")
        return self.choose(site, _heads_of(rows.head(count)), chosen_by=f"{count} largest effects")

    def marked(self, site: Site) -> HeadSet:
        """The heads that the table marks as selected, by rank."""
        rows = rows_of_site(self.heads, site).sort_values("rank")
        heads = _heads_of(where(rows, rows["selected"]))
        return self.choose(site, heads, chosen_by="selected in the run")

    def choose(self, site: Site, heads: Iterable[Head], *, chosen_by: str = "by hand") -> HeadSet:
        """A head set. Raises UserError for a head that the model does not have."""
        chosen = HeadSet(tuple((int(layer), int(head)) for layer, head in heads), site, chosen_by)
        rows = rows_of_site(self.heads, site)
        known = set(_heads_of(rows))
        for layer, head in chosen:
            if (layer, head) not in known:
                raise UserError(
                    f"there is no head {layer}.{head}: layers go to {rows['layer'].max()}, "
                    f"heads to {rows['head'].max()}"
                )
        return chosen

    def toggle(self, heads: HeadSet, head: Head) -> HeadSet:
        """The set without the head if it contains it, else with it."""
        others = [other for other in heads if other != head]
        return self.choose(heads.site, others if head in heads else [*heads, head])

    def figure(self, heads: HeadSet) -> "go.Figure":
        """The heat map of a site with frames around the chosen heads."""
        rows = rows_of_site(self.heads, heads.site)
        rows = rows.assign(selected=[head in heads for head in _heads_of(rows)])
        return head_heatmap(rows, site=heads.site)

    def examples(self) -> tuple[str, ...]:
        """False-premise questions of the held-out part, one for each subject."""
        if self.split is None:
            return ()
        premises, seen = self.split.held_out, {}
        templates = len(premises.templates)
        for number, question in enumerate(premises.questions()):
            subject = number // templates  # another template for each subject
            if number % templates == subject % templates:
                seen[question.subject] = premises.fill(question, "false").text
        return tuple(seen.values())

    def find(self, question: str, words: str = "") -> FoundPremise:
        """The words that may be false: ``words`` if given, else those that the detector finds.

        Raises UserError for an empty question, or for words that are not in it.
        """
        if not question.strip():
            raise UserError("the question is empty: type one, or take an example")
        if words := words.strip():
            rendered = render_chat(self.model.tokenizer, question)
            encoding = tokenize(self.model.tokenizer, rendered)
            tokens = named_span(question, words, rendered, encoding=encoding)
            return FoundPremise(last_mention(question, words), tokens, "you")
        if not isinstance(self._detector, Detector):
            self._detector = self._detector()
        (found,) = detect(self.model, [question], detector=self._detector, progress=False)
        if not found.fired:
            return FoundPremise(probability=found.probability)
        return FoundPremise(found.char_span, found.token_span, "the detector", found.probability)

    def ask(self, question: str, constraint: Constraint, *, words: str = "") -> Answers:
        """The answers without and with the constraint, which acts at the words that may be false.

        If there are no such words, or no heads, the two answers are the same.
        """
        found = self.find(question, words)
        baseline = self._baselines.get(question)
        if baseline is None:
            baseline = self._baselines[question] = self._answer(question, None, found)
        acts = found.tokens is not None and len(constraint.heads) > 0
        constrained = self._answer(question, constraint, found) if acts else baseline
        truth = self._truth(question)
        return Answers(question, found, constraint, baseline, constrained, truth)

    def _answer(self, question: str, constraint: Constraint | None, found: FoundPremise) -> Answer:
        rendered = render_chat(self.model.tokenizer, question)
        tokens = tokenize(self.model.tokenizer, rendered)["input_ids"]
        context: Any = nullcontext()
        if constraint is not None:
            mean = self._mean_output if constraint.mode == "mean" else None
            context = constrain(self.model, constraint, at=[found.tokens], mean=mean)
        began = time.perf_counter()
        with context:
            (text,) = generate_tokens(
                self.model, [tokens], max_new_tokens=self.max_new_tokens, progress=False
            )
        return Answer(text, time.perf_counter() - began)

    def _first_heads(self) -> HeadSet:
        site = self.sites[0]
        return self.marked(site) or self.top(site, min(3, self.n_heads(site)))

    @cached_property
    def _mean_output(self) -> Float[Tensor, "layer head d_head"]:
        if self.split is None:
            raise UserError("mode 'mean' takes means over premises: give split=, or another mode")
        return mean_output(self.model, as_encoded(self.model, self.split.search))

    def _truth(self, question: str) -> str:
        """The true object of the subject in the question (the longest, if there are several)."""
        if self.split is None:
            return ""
        facts = (*self.split.search.facts, *self.split.held_out.facts)
        named = [fact for fact in facts if names(question, fact.subject)]
        return max(named, key=lambda fact: len(fact.subject)).object if named else ""


def _heads_of(rows: "pd.DataFrame") -> list[Head]:
    return list(zip(rows["layer"], rows["head"], strict=True))


def read_heads_text(text: str) -> tuple[Head, ...]:
    """Heads in a typed text, ``17.8 9.1`` or ``(17, 8), (9, 1)``. Raises UserError otherwise."""
    heads, start, text = [], 0, text.strip()
    while start < len(text):
        match = _HEAD.match(text, start)
        if match is None:
            raise UserError(f"{text[start:][:20]!r} is no head: write layer.head, such as 17.8 9.1")
        heads.append((int(match[1]), int(match[2])))
        start = match.end()
    return tuple(dict.fromkeys(heads))


def heads_text(heads: Iterable[Head]) -> str:
    """Heads as ``17.8 9.1``."""
    return " ".join(f"{layer}.{head}" for layer, head in heads)
