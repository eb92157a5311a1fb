"""Scores of a trained adapter: greedy answers, held-out losses, and similarity of its experts.

The scored part of an answer is the last number for a calculation (after "the answer is" or ``####``
where there is such a mark), the option that is settled on for a choice, an asserted name for a
fact. `interp.moelora.data.numbers` compares numbers, `interp.moelora.training.options` finds
options. A name is *asserted* in a clause without a negation before it: "Paris is not the capital of
Germany; it is the capital of France" asserts France and denies Germany. Where a question
presupposes a false object, an answer that asserts it is wrong, whatever else it says.
"""

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import in_batches
from interp.forward.finite import check_finite_loss
from interp.forward.generate import BATCH_PROMPTS, greedy_answers
from interp.forward.out_of_memory import halving
from interp.forward.transfer import upload
from interp.models.call import evaluating
from interp.models.limits import check_prompts
from interp.models.placement import input_device
from interp.moelora.data.encoding import (
    IGNORED,
    AnswerCollator,
    EncodedExample,
    encode_prompt,
    end_token,
)
from interp.moelora.data.examples import Example
from interp.moelora.data.numbers import NUMBER, numbers_in, parse_number, same_number
from interp.moelora.layer import ExpertWeights, adapted_layers, observing
from interp.moelora.training.answer_logits import (
    keeps_logits,
    logits_at,
    predicting_positions,
)
from interp.moelora.training.options import extract_option
from interp.statistics.significance import mean_interval, mean_of_parts_interval
from interp.whole_words import mentions

MEAN = "mean"
"""The task name of the mean over tasks."""
MAX_NEW_TOKENS = 48
_MARKED = re.compile(
    r"####|\\boxed\s*\{|\banswer\b[*_\s]*(?:(?:is|must be|should be|would be|will be)\b|[:=])",
    re.IGNORECASE,
)
_OPEN = re.compile(
    rf"\W*(?:between\s+)?{NUMBER.pattern}\s*,?\s*or\s+{NUMBER.pattern}"
    rf"|\W*between\s+{NUMBER.pattern}\s+and\s+{NUMBER.pattern}",
    re.IGNORECASE,
)
"""Two alternative numbers, which leave the answer open."""
_DENIED = re.compile(
    rf"(?:\bnot|n['’]t|\brather than|\binstead of) +(?:{NUMBER.pattern})", re.IGNORECASE
)
"""A number that is named as the wrong one."""
_CLAUSES = re.compile(r"[;,.!?:\n]|\s[-–—]\s|\bbut\b|\brather\b|\binstead\b", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|never|no|neither|nor|cannot)\b|n['’]t\b", re.IGNORECASE)


@dataclass(frozen=True)
class ScoredAnswer:
    """One held-out question with the model's greedy answer in `prediction`."""

    task: str
    subject: str
    prompt: str
    answer: str
    prediction: str
    right: bool

    def to_row(self) -> dict[str, Any]:
        """A row of predictions.jsonl."""
        names = {"prediction": "said"}  # the file's column
        return {names.get(name, name): value for name, value in asdict(self).items()}

    @property
    def said(self) -> str:
        """`prediction`, under its name of version 0.1."""
        warnings.warn("ScoredAnswer.said is now .prediction", DeprecationWarning, stacklevel=2)
        return self.prediction


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers with its 95 % interval over questions, whole subjects resampled."""

    task: str
    n: int
    value: float
    ci_low: float
    ci_high: float

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"task {self.task!r} has no answers to score")


def is_right(example: Example, answer: str) -> bool:
    """Whether `answer` is a right one."""
    if example.kind == "number":
        value, right = extract_number(answer), parse_number(example.answer)
        return value is not None and right is not None and same_number(right, value)
    if example.kind == "option":
        return extract_option(answer, example.options) == example.answer
    false = example.false_object
    # A right name may hold the false one: Equatorial Guinea, Guinea.
    if false and asserts(answer, false, apart_from=example.right_names):
        return False
    return any(asserts(answer, name) for name in example.right_names)


def extract_number(text: str) -> Decimal | None:
    """The number that a text arrives at: the first one behind a mark, else the last one.

    Of a calculation behind the mark it is what stands behind its last ``=``. A number behind "not",
    "rather than" and "instead of" counts as none. None where the mark leaves two numbers open ("40
    or 44", "between 40 and 44").
    """
    text = _DENIED.sub(" ", text)
    *_, behind = _MARKED.split(text)
    marked = numbers_in(behind) if _MARKED.search(text) else []
    if marked:
        line = next(line for line in behind.split("\n") if numbers_in(line))
        if _OPEN.match(line):
            return None
        _, sign, calculated = line.rpartition("=")
        result = numbers_in(sign + calculated)
        return result[0] if result else marked[0]
    every = numbers_in(text)
    return every[-1] if every else None


def asserts(text: str, name: str, *, apart_from: Iterable[str] = ()) -> bool:
    """Whether some clause of a text names `name` with no negation before it; see `mentions`."""
    return any(
        not _is_signed(text[:start], name)
        and not _NEGATION.search(_CLAUSES.split(text[:start])[-1])
        for start, _ in mentions(text, name, apart_from=apart_from)
    )


def _is_signed(before: str, name: str) -> bool:
    """Whether a number stands behind a minus or a decimal point, which make it another."""
    return name.lstrip(".")[:1].isdigit() and before.endswith(("-", "−", "."))


def score(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_prompts: int = BATCH_PROMPTS,
    progress: bool = True,
) -> tuple[ScoredAnswer, ...]:
    """The greedy answers of a transformers or PEFT model, scored, in the order of the examples."""
    prompts = [encode_prompt(tokenizer, example.prompt) for example in examples]
    texts = greedy_answers(
        model,
        tokenizer,
        prompts,
        end=end_token(tokenizer),
        max_new_tokens=max_new_tokens,
        batch_prompts=batch_prompts,
        progress=progress,
    )
    asked = attrgetter("task", "subject", "prompt", "answer")
    return tuple(
        ScoredAnswer(*asked(example), text, is_right(example, text))
        for example, text in zip(examples, texts, strict=True)
    )


@torch.no_grad()
def answer_losses(
    model: Any, examples: Sequence[EncodedExample], *, pad: int = 0, batch: int = 32
) -> list[float]:
    """Per example the mean loss (nats) of the right response's tokens, as in training.

    It moves before the accuracy does, and has less noise.
    """
    check_prompts(model, [example.tokens for example in examples])
    device = input_device(model)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].tokens))
    losses = torch.zeros(len(examples))
    keeps = keeps_logits(model)

    def run_chunk(chunk: list[int]) -> None:
        padded = AnswerCollator(pad)([examples[index] for index in chunk])
        labels = padded.pop("labels")
        positions = predicting_positions(labels)
        targets = labels[:, positions + 1]
        inputs = {name: value.to(device) for name, value in padded.items()}
        _, logits = logits_at(model, inputs, positions, keeps=keeps)
        check_finite_loss(logits, model, partial(model, **inputs))
        found = []
        for row in range(len(chunk)):
            counted = (targets[row] != IGNORED).nonzero()[:, 0]
            right = upload(targets[row, counted], logits.device)
            answer = logits[row, upload(counted, logits.device)]
            found.append(F.cross_entropy(answer.float(), right))
        losses[chunk] = torch.stack(found).cpu()

    with evaluating(model):
        for _ in halving(in_batches(order, batch), run_chunk, what="one example"):
            pass
    return losses.tolist()


def accuracies(answers: Iterable[ScoredAnswer], *, seed: int = 0) -> tuple[Accuracy, ...]:
    """Accuracy of each task in order of first appearance; of several, their mean as "mean" too.

    In the mean each task weighs the same.
    """
    every = list(answers)
    right, tasks = [float(answer.right) for answer in every], [answer.task for answer in every]
    return mean_by_task(right, tasks, [answer.subject for answer in every], seed=seed)


def mean_by_task(
    values: Sequence[float], tasks: Sequence[str], subjects: Sequence[str], *, seed: int = 0
) -> tuple[Accuracy, ...]:
    """The mean of a value of each question by task, and over tasks, with intervals."""
    sizes = Counter(tasks)
    found = []
    for task in sizes:
        rows = [row for row, name in enumerate(tasks) if name == task]
        of_task = [values[row] for row in rows]
        interval = mean_interval(of_task, [subjects[row] for row in rows], seed=seed)
        found.append(Accuracy(task, len(rows), *interval))
    if len(sizes) > 1:
        interval = mean_of_parts_interval(values, tasks, subjects, seed=seed)
        found.append(Accuracy(MEAN, len(values), *interval))
    return tuple(found)


@torch.no_grad()
def expert_similarity(
    model: Any, examples: Sequence[EncodedExample], *, pad: int = 0, batch: int = 32
) -> dict[str, float]:
    """By projection, the mean cosine between different experts' outputs; empty for LoRA.

    For every token and every two experts, the cosine of what the two would add to the projection's
    output: 0 for unrelated experts, 1 for equal ones. The contrastive loss lowers it.
    """
    layers = adapted_layers(model)
    if not layers:
        return {}
    device = input_device(model)

    def run_chunk(chunk: list[int]) -> dict[str, float]:
        inputs = AnswerCollator(pad)([examples[index] for index in chunk])
        mask = inputs["attention_mask"].bool()
        real = upload(mask.flatten().nonzero()[:, 0], device)
        names: list[str] = []
        found: list[Tensor] = []

        def add(number: int, x: Tensor) -> None:
            layer = layers[number]
            tokens = x.reshape(-1, x.shape[-1])[real.to(x.device)].float()
            for adapter in layer.adapters_in_use:
                names.append(layer.name)
                found.append(_summed_cosine(layer.weights(adapter), tokens).to(device))

        with observing(layers, add):
            model(input_ids=inputs["input_ids"].to(device), attention_mask=mask.to(device).long())
        sums: dict[str, float] = defaultdict(float)
        for name, value in zip(names, torch.stack(found).tolist() if found else [], strict=True):
            sums[name] += value
        return sums

    total = dict.fromkeys((layer.name for layer in layers), 0.0)
    chunks = in_batches(range(len(examples)), batch)
    with evaluating(model):
        for _, sums in halving(chunks, run_chunk, what="one example"):
            for name, value in sums.items():
                total[name] += value
    n_tokens = sum(len(example.tokens) for example in examples)
    return {name: value / max(n_tokens, 1) for name, value in total.items()}


def _summed_cosine(weights: ExpertWeights, x: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """The mean cosine between different experts, summed over tokens."""
    cosine = weights.cosines(weights.hidden(x))
    count = len(weights.router)
    different = ~torch.eye(count, dtype=torch.bool, device=cosine.device)
    return (cosine * different).sum() / max(count * (count - 1), 1)
