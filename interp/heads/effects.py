"""Effects of heads: the one result that every method of locating gives, for either site.

Sign: effect = logit(true object) − logit(false object) with the head edited, less the same in the
unedited run. A **positive** effect means that the answer gets better without the head's part: it
is a false-premise head. ``probability`` is the paper's measure beside it, E = P'(O) − P(O)
(arXiv 2402.19103, section 3.3).

Statistics are over subjects: questions about one subject are not independent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.arguments import check_choice, indices, of_kind, real_number, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.evaluation import head_heatmap
from interp.figures.heatmap import layer_effects
from interp.files.tensor_file import read_tensor_file, write_tensor_file
from interp.files.tensors import check_tensors
from interp.heads.headset import Head, HeadSet, Site, check_site
from interp.heads.statistics import HeadStatistics, edited_heads, head_statistics
from interp.lazy import go, pd
from interp.patching.effect_arrays import best_first
from interp.patching.result import STATISTICS, PatchEffects
from interp.statistics.significance import (
    MINIMUM_GROUPS,
    RESOLUTION,
    group_means,
    interval_within,
    mean_interval,
    resolved_means,
    strata_of_groups,
)

Method = Literal["path", "activation", "attribution"]
_SMALL_NUMBER = re.compile(r"\d{1,3}(\.\d{1,20})?(e-\d{1,3})?", re.ASCII)
_OF_PROMPTS = ("subjects", "templates", "relations")
VOTE_THRESHOLD = 0.1
"""The paper's least E for a prompt to vote for a head."""


@dataclass(frozen=True)
class HeadEffects(Displayed):
    """Effect of editing each head alone, per prompt.

    Attributes:
        values: Float[prompt layer head], change of the logit difference; NaN for a head that was
            not edited.
        probability: Float[prompt layer head], change of P(O); estimated too where values are.
        subjects, templates: of each prompt.
        site, method, source: what was edited, how it was computed, and from where values came.
        seed: of the intervals and tests.
        resolution: effects below this (logits) are rounding and count as none in tests.
        relations: of each prompt, where several are pooled: subjects are resampled within each.
    """

    values: Float[Tensor, "prompt layer head"]
    probability: Float[Tensor, "prompt layer head"]
    subjects: tuple[str, ...]
    templates: tuple[str, ...]
    site: Site
    method: Method
    source: str
    seed: int = 0
    resolution: float = RESOLUTION
    relations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_site(self.site)
        if self.values.shape != self.probability.shape:
            raise UserError("effects and probabilities differ in shape")
        if not len(self.values) == len(self.subjects) == len(self.templates):
            raise UserError("effects, subjects and templates differ in length")
        if self.relations and len(self.relations) != len(self.values):
            raise UserError("effects and relations differ in length")

    def as_patching(self) -> tuple[PatchEffects, PatchEffects]:
        """Values and probability as results of patching; the unedited metrics are not known.

        Such a result has no relations: its statistics resample all subjects together.
        """
        logits = PatchEffects(
            values=self.values,
            axes=("prompt", "layer", "head"),
            corrupted=torch.full((len(self.values),), torch.nan),
            component="z" if self.site == "output" else "pattern",
            method=self.method,
            metric="logit_difference",
            source=self.source,
            groups=self.subjects,
            templates=self.templates,
            seed=self.seed,
            resolution=self.resolution,
        )
        return logits, replace(logits, values=self.probability, metric="probability")

    @property
    def n_heads(self) -> int:
        """Heads in all layers."""
        return self.values[0].numel()

    @cached_property
    def edited(self) -> Bool[Tensor, "layer head"]:
        """Which heads were edited; all of them, where none were named."""
        return edited_heads(self.values)

    @property
    def n_edited(self) -> int:
        """How many heads were edited."""
        return int(self.edited.sum())

    @property
    def mean(self) -> Float[Tensor, "layer head"]:
        """Mean effect over subjects, each of which counts once; NaN where not edited."""
        return torch.from_numpy(self._mean).to(self.values.dtype)

    @cached_property
    def _mean(self) -> Float[np.ndarray, "layer head"]:
        """The mean of ``statistics``, which needs no least number of subjects."""
        by_subject = resolved_means(self.values, self.subjects, resolution=self.resolution)
        return by_subject.mean(axis=0)

    @cached_property
    def statistics(self) -> HeadStatistics:
        """Mean over subjects, interval, p- and q-value of every head.

        Raises UserError for fewer than six subjects.
        """
        return head_statistics(
            self.values,
            self.subjects,
            relations=self.relations,
            seed=self.seed,
            resolution=self.resolution,
        )

    @property
    def _is_tested(self) -> bool:
        return len(set(self.subjects)) >= MINIMUM_GROUPS

    @property
    def rank(self) -> Int[np.ndarray, "layer head"]:
        """1 for the head with the largest mean effect; heads that were not edited are last."""
        return best_first(self._mean.ravel()).argsort().reshape(self._mean.shape) + 1

    def ranked(self) -> tuple[Head, ...]:
        """The heads that were edited, largest mean effect first."""
        order = best_first(self._mean.ravel())[: self.n_edited]
        return _heads_at(order, self.values.shape[2])

    def select(
        self,
        *,
        fraction: float | None = None,
        count: int | None = None,
        fdr: float | None = None,
        vote: float | None = None,
    ) -> HeadSet:
        """Choose heads by their effects.

        Exactly one of ``fraction`` (of all heads, at least one), ``count`` and ``fdr`` (every head
        with a positive effect and q ≤ fdr). ``vote=τ`` beside a fraction or count ranks heads as
        the paper does (section 3.4): by how many prompts have E ≥ τ.
        """
        return select_heads(self, fraction=fraction, count=count, fdr=fdr, vote=vote)

    def to_dataframe(self, selected: HeadSet | None = None) -> "pd.DataFrame":
        """One row a head that was edited, in the columns of ``heads.csv``, best first.

        Intervals, p- and q-values are NaN with fewer than ``MINIMUM_GROUPS`` subjects.
        """
        layer, head = (index.ravel() for index in np.indices(self.values.shape[1:]))
        chosen = set(selected.heads) if selected and selected.site == self.site else set()
        frame = pd.DataFrame(
            {
                "site": self.site,
                "layer": layer,
                "head": head,
                "effect": self._mean.ravel(),
                **{
                    name: getattr(self.statistics, name).ravel() if self._is_tested else np.nan
                    for name in STATISTICS
                },
                "rank": self.rank.ravel(),
                "selected": [pair in chosen for pair in zip(layer, head, strict=True)],
            }
        )
        return frame.sort_values("rank", ignore_index=True).head(self.n_edited)

    def plot(self, selected: HeadSet | None = None, *, by: str = "head") -> "go.Figure":
        """Heat map of the mean effects, layer × head; or by layer, their sums with intervals.

        ``selected`` heads are framed in the heat map. Raises UserError for another ``by``.
        """
        if check_choice("kind of figure", by, ("head", "layer")) == "layer":
            return layer_effects(effects_by_layer(self))
        return head_heatmap(self.to_dataframe(selected), site=self.site)

    def _shown(self) -> Shown:
        tested = f"{MINIMUM_GROUPS} subjects are needed for intervals and tests"
        if self._is_tested:
            tested = f"{int((self.statistics.q_value <= 0.05).sum())} heads with q ≤ 0.05"
        text = (
            f"Effects of {self.n_edited} heads (site {self.site}, {self.method}, source "
            f"{self.source}) on {len(self.values)} prompts about {len(set(self.subjects))} "
            f"subjects, in logits; {tested}. Positive: the answer gets better without the head's "
            "part."
        )
        return Shown(text, (self.to_dataframe().drop(columns=["site", "selected"]),), self.plot)

    def take(self, prompts: Sequence[int]) -> "HeadEffects":
        """The effects on some of the prompts."""
        index = indices("prompts", prompts, len(self.values))
        logits, probability = (result.take(index) for result in self.as_patching())
        return replace(
            self,
            values=logits.values,
            probability=probability.values,
            subjects=logits.groups,
            templates=logits.templates,
            relations=tuple(self.relations[i] for i in index) if self.relations else (),
        )

    def save(self, path: str | Path) -> Path:
        """Write the effects to a safetensors file."""
        return save_effects(path, [self])

    @classmethod
    def load(cls, path: str | Path, site: Site = "output") -> "HeadEffects":
        """Read one site's effects. Raises UserError where they are not in the file."""
        by_site = load_effects(path)
        if site not in by_site:
            raise UserError(f"{path} holds no effects of site {site!r}: {', '.join(by_site)}")
        return by_site[site]


def _heads_at(indices: Int[np.ndarray, " unit"], n_heads: int) -> tuple[Head, ...]:
    """(layer, head) of heads numbered through all layers."""
    return tuple((int(index) // n_heads, int(index) % n_heads) for index in indices)


@checked
def select_heads(
    effects: HeadEffects,
    *,
    fraction: float | None = None,
    count: int | None = None,
    fdr: float | None = None,
    vote: float | None = None,
) -> HeadSet:
    """A head set from effects; see ``HeadEffects.select``."""
    ways = {"fraction": fraction, "count": count, "fdr": fdr}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise UserError(f"choose by exactly one of fraction, count and fdr, not {given or 'none'}")
    if vote is not None:
        vote = real_number("vote", vote)
    if fdr is not None:
        if vote is not None:
            raise UserError("a vote ranks heads: give it a fraction or a count, not an fdr")
        if not 0 < real_number("fdr", fdr) < 1:
            raise UserError(f"a false-discovery rate lies between 0 and 1, not {fdr}")
        passed = (effects.statistics.q_value <= fdr) & (effects.statistics.mean > 0)
        heads = tuple(head for head in effects.ranked() if passed[head])
        how = f"positive effect at FDR {fdr:g}"
    else:
        if count is None:
            size = count_of_fraction(fraction or 0.0, effects.n_heads)
        else:
            size = whole_number("count", count)
        if not 0 <= size <= effects.n_edited:
            raise UserError(f"cannot choose {size} of {effects.n_edited} heads")
        heads = (effects.ranked() if vote is None else _by_vote(effects, vote))[:size]
        how = f"{size} " + ("largest mean effects" if vote is None else f"most voted at E ≥ {vote}")
    return HeadSet(heads, effects.site, f"{how}, {effects.method}")


@checked
def count_of_fraction(fraction: float, n_heads: int) -> int:
    """How many heads a fraction of them is: rounded, at least one."""
    fraction = real_number("fraction", fraction)
    if not 0 < fraction <= 1:
        raise UserError(f"a fraction of the heads is above 0 and at most 1, not {fraction}")
    return max(1, round(fraction * n_heads))


def _by_vote(effects: HeadEffects, threshold: float) -> tuple[Head, ...]:
    votes = (effects.probability >= threshold).sum(dim=0)
    # Ties, and heads without a vote, are ordered by the mean of E.
    order = np.lexsort((-effects.probability.mean(dim=0).numpy().ravel(), -votes.numpy().ravel()))
    return _heads_at(order[: effects.n_edited], effects.values.shape[2])


@checked
def effects_by_layer(effects: HeadEffects, *, fdr: float = 0.05) -> "pd.DataFrame":
    """One row a layer: ``layer``, ``effect``, ``ci_low``, ``ci_high`` (logits), ``significant``.

    Each prompt's effects are summed over the layer's heads; the mean is over subjects, each of
    which counts once, with a 95 % interval from resampling them. Heads were edited one by one, so
    this is the sum of single effects, not the effect of editing the layer: heads that compensate
    for each other count twice.
    ``significant`` counts the heads with q ≤ ``fdr``. Heads that were not edited are left out.
    Raises UserError for fewer than six subjects.
    """
    of_kind("effects", effects, HeadEffects, advice="locate_heads gives them")
    sums = group_means(effects.values.nansum(dim=2), effects.subjects)
    significant = (effects.statistics.q_value <= fdr).sum(axis=1)
    if effects.relations:
        strata = strata_of_groups(effects.relations, effects.subjects)
        low, high = interval_within(sums, strata, seed=effects.seed)
        intervals = list(zip(sums.mean(axis=0), low, high, strict=True))
    else:
        subjects = list(dict.fromkeys(effects.subjects))
        intervals = [mean_interval(of, subjects, seed=effects.seed) for of in sums.T]
    rows = [
        (layer, *interval, int(count))
        for layer, (interval, count) in enumerate(zip(intervals, significant, strict=True))
    ]
    return pd.DataFrame(rows, columns=["layer", "effect", "ci_low", "ci_high", "significant"])


@checked
def agreement(a: HeadEffects, b: HeadEffects, *, top_k: int = 10) -> dict[str, float]:
    """How alike two methods' mean effects are; see `PatchEffects.agreement`.

    ``top_k_overlap`` is of the heads with the largest signed effects: a head that makes answers
    worse when it is edited is no false-premise head, however large its effect.
    """
    if a.values.shape[1:] != b.values.shape[1:]:
        raise UserError("the effects are of models of different sizes")
    return a.as_patching()[0].agreement(b.as_patching()[0], top_k=top_k, by="signed")


@checked
def save_effects(
    path: str | Path, effects: Sequence[HeadEffects], *, kept: Mapping[str, str] | None = None
) -> Path:
    """Write effects of one or both sites to one safetensors file; ``kept`` is further metadata."""
    tensors: dict[str, Tensor] = {}
    metadata = dict(kept or {})
    if len({found.site for found in effects}) < len(effects):
        raise UserError("two of the effects are of one site: save each to a file of its own")
    for found in effects:
        prompts = {name: getattr(found, name) for name in _OF_PROMPTS}
        if any("\n" in text for texts in prompts.values() for text in texts):
            raise UserError("a subject, template or relation has a line break: take it out")
        if any(getattr(effects[0], name) != texts for name, texts in prompts.items()):
            raise UserError("the effects are of different prompts: save each to a file of its own")
        tensors[f"{found.site}.values"] = found.values
        tensors[f"{found.site}.probability"] = found.probability
        for name in ("method", "source", "seed", "resolution"):
            metadata[f"{found.site}.{name}"] = str(getattr(found, name))
        # Relations are left out where there are none, as in files of versions without them.
        metadata |= {name: "\n".join(texts) for name, texts in prompts.items() if texts}
    return write_tensor_file(Path(path), tensors, metadata)


@checked
def load_effects(path: str | Path) -> dict[str, HeadEffects]:
    """Read what ``save_effects`` wrote, by site. Raises UserError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no effects at {path}: run `interp locate` first")
    try:
        tensors, metadata = read_tensor_file(path)
        sites = [site for site in get_args(Site) if f"{site}.values" in tensors]
        found = {site: _effects_of_site(site, tensors, metadata) for site in sites}
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}): run `interp locate` again") from error
    if not found:
        raise UserError(f"{path} is damaged (no site in it): run `interp locate` again")
    return found


def _effects_of_site(
    site: Site, tensors: Mapping[str, Tensor], texts: Mapping[str, str]
) -> HeadEffects:
    """One site's effects. Raises UserError that does not name the file."""
    values, probability = f"{site}.values", f"{site}.probability"
    check_tensors(tensors, **{values: 3, probability: 3})
    named = {name: f"{site}.{name}" for name in ("method", "source", "seed")}
    for name in ("subjects", "templates", *named.values()):
        if name not in texts:
            raise UserError(f"it has no {name}")
    method, source, seed = (texts[name] for name in named.values())
    if method not in get_args(Method):
        raise UserError(f"unknown method {method[:40]!r}")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 20):
        raise UserError(f"the seed is {seed[:40]!r}")
    resolution = texts.get(f"{site}.resolution", repr(RESOLUTION))
    if not _SMALL_NUMBER.fullmatch(resolution):
        raise UserError(f"the resolution is {resolution[:40]!r}")
    return HeadEffects(
        values=tensors[values],
        probability=tensors[probability],
        subjects=tuple(texts["subjects"].split("\n")),
        templates=tuple(texts["templates"].split("\n")),
        site=site,
        method=cast(Method, method),
        source=source,
        seed=int(seed),
        resolution=float(resolution),
        relations=tuple(texts["relations"].split("\n")) if "relations" in texts else (),
    )
