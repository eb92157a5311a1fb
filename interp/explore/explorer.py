"""``Explorer``: ask a model questions with and without some of its heads. No page, no state.

question → detection → head set → constraint → two answers. What is slow and does not change (the
detector, the mean outputs, the answers without a constraint) is kept.
"""

import re
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cached_property
from typing import Any, cast

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.explore.answers import Answer, Answers, FoundPremise
from interp.figures.evaluation import head_heatmap
from interp.figures.tables import rows_of_site
from interp.forward.generate import MAX_NEW_TOKENS, generate_tokens
from interp.heads.headset import Head, HeadSet, Site, check_site
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.interventions.context import constrain
from interp.interventions.generate import named_span
from interp.interventions.head_constraint import SITE_MODES, Constraint, Mode
from interp.models import model_info, render_chat
from interp.models.hooked_model import HookedModel
from interp.premises.encode import tokenize
from interp.premises.mentions import names
from interp.premises.questions import Split
from probes.detector.detect import detect
from probes.detector.detections import Detector
from probes.detector.train import detector_for

_HEAD = re.compile(r"\(?\s*(\d{1,9})\s*[.,:]\s*(\d{1,9})\s*\)?\s*(?:[,;]\s*|\s+|$)")


class Explorer:
    """A model, the effects of its heads, and a detector of false premises.

    Args:
        model: a hooked model.
        heads: one row a head and site, in the columns of ``heads.csv``.
        split: the premises of the search: mode ``mean`` takes its means over the search part, and
            the held-out part gives examples; without them there are neither.
        detector: finds the false words of a question, or a function that makes the detector when
            it is first needed; by default the model's own, ``probes.detector_for(model)``.
        start: what a page begins with; by default the heads that the table marks at its first
            site, or the three largest effects there, with mode ``zero``.
        max_new_tokens: the length of an answer.
    """

    def __init__(
        self,
        model: HookedModel,
        heads: pd.DataFrame,
        *,
        split: Split | None = None,
        detector: Detector | Callable[[], Detector] | None = None,
        start: Constraint | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self.model = model
        self.heads = heads
        self.split = split
        self.max_new_tokens = max_new_tokens
        self.start = start or Constraint(self._first_heads())
        self._detector = detector or self._own_detector
        self._baselines: dict[str, Answer] = {}

    @property
    def name(self) -> str:
        """What the model was asked for by."""
        return model_info(self.model).spec

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites at which effects are known."""
        return tuple(cast(Site, str(site)) for site in self.heads["site"].unique())

    @property
    def detector_is_ready(self) -> bool:
        """Whether a question can be read at once, without a detector being made first."""
        return isinstance(self._detector, Detector)

    def modes(self, site: Site) -> tuple[Mode, ...]:
        """What can be done to heads at a site."""
        check_site(site)
        return tuple(mode for mode in SITE_MODES[site] if mode != "mean" or self.split is not None)

    def n_heads(self, site: Site) -> int:
        """How many heads have an effect at a site."""
        return len(rows_of_site(self.heads, site))

    def top(self, site: Site, count: int) -> HeadSet:
        """The heads of the largest effects at a site. Raises UserError for too many."""
        rows = rows_of_site(self.heads, site).sort_values("rank")
        if not 0 <= count <= len(rows):
            raise UserError(f"cannot choose {count} of {len(rows)} heads")
        return self.choose(
            site,
            zip(rows["layer"][:count], rows["head"][:count], strict=True),
            chosen_by=f"{count} largest effects",
        )

    def marked(self, site: Site) -> HeadSet:
        """The heads that the table marks as selected, best first."""
        rows = rows_of_site(self.heads, site).sort_values("rank")
        rows = rows.loc[rows["selected"].astype(bool)]
        pairs = zip(rows["layer"], rows["head"], strict=True)
        return self.choose(site, pairs, chosen_by="selected in the run")

    def choose(self, site: Site, heads: Iterable[Head], *, chosen_by: str = "by hand") -> HeadSet:
        """These heads. Raises UserError for one that the model does not have."""
        chosen = HeadSet(tuple((int(a), int(b)) for a, b in heads), site, chosen_by)
        rows = rows_of_site(self.heads, site)
        known = set(zip(rows["layer"], rows["head"], strict=True))
        for layer, head in chosen:
            if (layer, head) not in known:
                raise UserError(
                    f"there is no head {layer}.{head}: layers go to {rows['layer'].max()}, "
                    f"heads to {rows['head'].max()}"
                )
        return chosen

    def toggle(self, heads: HeadSet, head: Head) -> HeadSet:
        """The set without the head if it is in there, else with it."""
        others = [one for one in heads if one != head]
        return self.choose(heads.site, others if head in heads else [*heads, head])

    def figure(self, heads: HeadSet) -> go.Figure:
        """The heat map of a site, with the chosen heads framed."""
        rows = rows_of_site(self.heads, heads.site)
        pairs = zip(rows["layer"], rows["head"], strict=True)
        rows = rows.assign(selected=[pair in heads for pair in pairs])
        return head_heatmap(rows, site=heads.site)

    def examples(self) -> tuple[str, ...]:
        """False-premise questions of the held-out part, one a subject."""
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
        """The words that may be false: ``words`` if given, else what the detector says.

        Raises UserError for an empty question, or words that it does not hold.
        """
        if not question.strip():
            raise UserError("the question is empty: type one, or take an example")
        if words := words.strip():
            rendered = render_chat(self.model.tokenizer, question)
            encoding = tokenize(self.model.tokenizer, rendered)
            tokens = named_span(question, words, rendered, encoding)
            start = question.rfind(words)
            return FoundPremise((start, start + len(words)), tokens, "you")
        if not isinstance(self._detector, Detector):
            self._detector = self._detector()
        (found,) = detect(self.model, [question], detector=self._detector, progress=False)
        if not found.fired:
            return FoundPremise(probability=found.probability)
        return FoundPremise(found.char_span, found.token_span, "the detector", found.probability)

    def ask(self, question: str, constraint: Constraint, *, words: str = "") -> Answers:
        """The answer without the constraint and with it, acting on the words that may be false.

        Where no false premise is found, or no head is chosen, the answer stays as it is.
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

    def _own_detector(self) -> Detector:
        return detector_for(self.model)

    @cached_property
    def _mean_output(self) -> Float[Tensor, "layer head d_head"]:
        if self.split is None:
            raise UserError("mode 'mean' takes means over premises: give split=, or another mode")
        return mean_output(self.model, as_encoded(self.model, self.split.search))

    def _truth(self, question: str) -> str:
        """The object of the fact whose subject the question names; of several, the longest's."""
        if self.split is None:
            return ""
        facts = (*self.split.search.facts, *self.split.held_out.facts)
        named = [fact for fact in facts if names(question, fact.subject)]
        return max(named, key=lambda fact: len(fact.subject)).object if named else ""


def read_heads_text(text: str) -> tuple[Head, ...]:
    """Heads as people type them: ``17.8 9.1``, ``(17, 8), (9, 1)``. UserError for anything else."""
    found, place, text = [], 0, text.strip()
    while place < len(text):
        match = _HEAD.match(text, place)
        if match is None:
            raise UserError(f"{text[place:][:20]!r} is no head: write layer.head, such as 17.8 9.1")
        found.append((int(match[1]), int(match[2])))
        place = match.end()
    return tuple(dict.fromkeys(found))


def heads_text(heads: Iterable[Head]) -> str:
    """Heads as ``17.8 9.1``."""
    return " ".join(f"{layer}.{head}" for layer, head in heads)
