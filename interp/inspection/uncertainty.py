"""Uncertainty of answers, from the answers alone: three scores that need no ground truth.

After FAITH (arXiv 2402.19103, section 3.2), for every question:

1. ``surprisal``: mean of −log p over the tokens of the greedy answer, in nats per token;
2. ``sampled_surprisal``: the same, averaged over sampled answers (10, at temperature 1);
3. ``cluster_entropy``: −Σ_c q_c log q_c in nats, q_c the share of sampled answers in cluster c
   (Kuhn et al., arXiv 2302.09664, counting answers rather than weighting them).

The paper's clusters use the gold answers, which leak the label. Here answers are in one cluster if
they share most of their words (``word_clusters``), or if they name the same of some given names,
such as all objects of a relation (``NameClusters``).

Higher is more uncertain. The end-of-text token counts as a token of the answer.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.inspection import uncertainty_by_outcome
from interp.forward.batch import TokenBatch
from interp.forward.generate import BATCH_PROMPTS, MAX_NEW_TOKENS, end_tokens, greedy_answers
from interp.forward.partial import device_of
from interp.lazy import distance, hierarchy, stats
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.premises.encode import encode_question
from interp.premises.questions import Premises, QuestionKind
from interp.premises.relation import names
from probes.scoring import auc_with_interval

Clusters = Callable[[Sequence[str], str], Sequence[int]]
"""(answers to one question, the question) → the number of each answer's cluster."""

SCORES = ("surprisal", "sampled_surprisal", "cluster_entropy")
DEFAULT_SAMPLES = 10
DEFAULT_SIMILARITY = 0.5
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class Uncertainty(Displayed):
    """The three scores of every question, and its answers.

    Attributes:
        surprisal, sampled_surprisal: nats per token; ``cluster_entropy``: nats.
        answers: the greedy answer to each question; ``samples`` the sampled ones.
        subjects, templates: of each question.
        seed: of the samples and of intervals.
    """

    surprisal: Float[np.ndarray, " question"]
    sampled_surprisal: Float[np.ndarray, " question"]
    cluster_entropy: Float[np.ndarray, " question"]
    answers: tuple[str, ...]
    samples: tuple[tuple[str, ...], ...]
    subjects: tuple[str, ...]
    templates: tuple[str, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if len({len(value) for name, value in vars(self).items() if name != "seed"}) != 1:
            raise UserError("scores, answers, subjects and templates differ in number")

    def to_dataframe(self) -> pd.DataFrame:
        """One row a question."""
        scores = {name: getattr(self, name) for name in SCORES}
        asked = {"subject": self.subjects, "template": self.templates}
        return pd.DataFrame({**asked, **scores, "answer": self.answers})

    def auc(self, hallucinated: Sequence[bool]) -> pd.DataFrame:
        """How well each score predicts which answers are hallucinated.

        Columns score, auc, ci_low, ci_high; 0.5 is chance, intervals come from resampling subjects.
        Raises UserError unless both kinds of answer occur.
        """
        labels = torch.as_tensor([int(label) for label in hallucinated])
        rows = []
        for name in SCORES:
            scores = torch.as_tensor(getattr(self, name))
            rows.append((name, *auc_with_interval(scores, labels, self.subjects, seed=self.seed)))
        return pd.DataFrame(rows, columns=["score", "auc", "ci_low", "ci_high"])

    def plot(self, hallucinated: Sequence[bool]) -> go.Figure:
        """Each score's distribution, hallucinated answers beside the others, with its AUC."""
        return uncertainty_by_outcome(
            self.to_dataframe().assign(hallucinated=list(hallucinated)), self.auc(hallucinated)
        )

    def _shown(self) -> Shown:
        words = (
            f"Uncertainty of the answers to {len(self.answers)} questions, {len(self.samples[0])} "
            "samples each. With labels, .auc(hallucinated) and .plot(hallucinated) show how well "
            "it predicts hallucination."
        )
        return Shown(words, (self.to_dataframe(),))


@checked
def uncertainty(
    model: HookedModel,
    premises: Premises,
    *,
    kind: QuestionKind = "false",
    n_samples: int = DEFAULT_SAMPLES,
    temperature: float = 1.0,
    clusters: "Clusters | None" = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    progress: bool = True,
) -> Uncertainty:
    """Answer every question greedily and by sampling, and score the uncertainty of the answers.

    Args:
        clusters: groups the answers to one question; by default ``word_clusters``.

    Raises:
        UserError: fewer than two samples, or a temperature that is not above zero.
    """
    check_hooked(model)
    if n_samples < 2:
        raise UserError(f"an entropy needs at least 2 sampled answers, not {n_samples}")
    questions = premises.questions()
    filled = [premises.fill(question, kind) for question in questions]
    prompts = [list(encode_question(model.tokenizer, text).tokens) for text in filled]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "progress": progress}
    greedy, surprisal = scored_answers(model, prompts, description="greedy", **options)
    repeated = [prompt for prompt in prompts for _ in range(n_samples)]
    options |= {"temperature": temperature, "seed": seed}
    texts, surprisals = scored_answers(model, repeated, description="samples", **options)
    samples = tuple(
        tuple(texts[begin : begin + n_samples]) for begin in range(0, len(texts), n_samples)
    )
    cluster = clusters or word_clusters
    entropies = [
        cluster_entropy(cluster(sampled, question.text))
        for sampled, question in zip(samples, filled, strict=True)
    ]
    return Uncertainty(
        surprisal=surprisal,
        sampled_surprisal=surprisals.reshape(-1, n_samples).mean(axis=1),
        cluster_entropy=np.array(entropies),
        answers=greedy,
        samples=samples,
        subjects=tuple(question.subject for question in questions),
        templates=tuple(question.template for question in questions),
        seed=seed,
    )


def cluster_entropy(labels: Sequence[int]) -> float:
    """Entropy in nats of the shares of the clusters that ``labels`` name."""
    if len(labels) == 0:
        raise UserError("there are no answers to take an entropy of")
    return float(stats.entropy(np.unique(np.asarray(labels), return_counts=True)[1]))


def word_clusters(
    answers: Sequence[str], question: str, *, similarity: float = DEFAULT_SIMILARITY
) -> tuple[int, ...]:
    """Clusters in which any two answers share at least ``similarity`` of their words.

    Words are compared as sets (Jaccard, complete linkage), in lower case and without the words of
    the question, which most answers repeat. Answers without other words are equal.
    """
    if not 0 < similarity <= 1:
        raise UserError(f"similarity must be above 0 and at most 1, not {similarity}")
    if len(answers) < 2:
        return tuple(range(1, len(answers) + 1))
    asked, *words = [set(_WORD.findall(text.casefold())) for text in (question, *answers)]
    words = [found - asked for found in words]
    if not any(words):
        return (1,) * len(answers)
    vocabulary = sorted(set().union(*words))
    table = np.array([[word in found for word in vocabulary] for found in words])
    distances = distance.pdist(table, metric="jaccard")
    tree = hierarchy.linkage(distances, "complete")
    found = hierarchy.fcluster(tree, t=1 - similarity + 1e-9, criterion="distance")
    return tuple(int(label) for label in found)


@dataclass(frozen=True)
class NameClusters:
    """Clusters of answers that contain the same of the given names, as whole words."""

    names: tuple[str, ...]

    def __call__(self, answers: Sequence[str], question: str) -> tuple[int, ...]:
        """The cluster of each answer."""
        found = [tuple(name for name in self.names if names(text, name)) for text in answers]
        order = {named: index for index, named in enumerate(dict.fromkeys(found))}
        return tuple(order[named] for named in found)


class _ChosenSurprisal(LogitsProcessor):
    """Sums −log p of the generated tokens, one step behind the generation.

    Only one step's log-probabilities are in memory: all steps of a batch would take gigabytes.
    """

    def __init__(self, width: int, end_tokens: Sequence[int]) -> None:
        self.width, self.end_tokens = width, torch.tensor(list(end_tokens), dtype=torch.long)
        self.previous: Tensor | None = None
        self.total: Tensor = torch.empty(0)
        self.count: Tensor = torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Account for the last chosen token; returns the scores unchanged."""
        self.account(input_ids)
        self.previous = scores.float().log_softmax(dim=-1)
        return scores

    def account(self, ids: Int[Tensor, "prompt pos"]) -> None:
        """Add the last token's surprisal to each answer that had not ended before it."""
        if self.previous is None:
            self.total, self.count = (torch.zeros(len(ids), device=ids.device) for _ in range(2))
            return
        ended = torch.isin(ids[:, self.width : -1], self.end_tokens.to(ids.device)).any(dim=1)
        chosen = self.previous.gather(1, ids[:, -1:])[:, 0]
        self.total = self.total - chosen.masked_fill(ended, 0.0)
        self.count = self.count + (~ended).float()


@torch.no_grad()
def scored_answers(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_prompts: int = BATCH_PROMPTS,
    seed: int = 0,
    progress: bool = True,
    description: str = "answers",
) -> tuple[tuple[str, ...], Float[np.ndarray, " prompt"]]:
    """One answer to each prompt and its mean surprisal, in nats per token.

    Args:
        prompts: token ids.
        temperature: for sampling from the whole vocabulary; None for the greedy answer. The
            surprisal is always at temperature 1.

    Raises:
        UserError: a temperature that is not above zero.
    """
    if temperature is not None and temperature <= 0:
        raise UserError(f"temperature must be above zero, not {temperature}; None is greedy")
    hf_model, tokenizer = model.original_model, model.tokenizer
    ends = end_tokens(hf_model, tokenizer)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    surprisal = np.zeros(len(prompts))

    def answer(chunk: list[int], batch: TokenBatch, settings: dict[str, Any]) -> Tensor:
        chosen = _ChosenSurprisal(batch.width, ends)
        processors = LogitsProcessorList([chosen])
        ids = hf_model.generate(**settings, **sampling, logits_processor=processors)
        chosen.account(ids)
        surprisal[chunk] = (chosen.total / chosen.count).double().cpu().numpy()
        return ids

    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        texts = greedy_answers(
            hf_model,
            tokenizer,
            prompts,
            answer=answer,
            max_new_tokens=max_new_tokens,
            batch_prompts=batch_prompts,
            progress=progress,
            description=description,
        )
    return tuple(texts), surprisal
