"""The model type ``faithlens`` of lm-evaluation-harness: a transformers model with a constraint.

    --model faithlens --model_args run=runs/demo,gate=probe

It is the harness' own model type ``hf`` with ``interp.attach`` on its model, so that every argument
of ``hf`` is one of its too. Log-likelihoods, rolling ones and generation are computed by the
harness' code; only where the constraint acts is decided here (`interp.harness.contexts`).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from interp.arguments import check_choice
from interp.attached.attach import attach, detector_places
from interp.attached.places import Ids
from interp.attached.prompt_text import QuestionFrame
from interp.attached.what import intervention_of, run_of
from interp.errors import UserError
from interp.forward.batch import Span
from interp.harness.contexts import PlacesInContexts, PlainText, without_padding
from interp.models import model_info, resolve
from interp.runs.manifest import read_manifest, recorded_spec
from probes.detector.detections import Detector
from probes.detector.support_detector import load_detector

_HARNESS_MODEL: Any = HFLM
"""Its decorator hides its class from type checkers."""
GATES = ("probe", "closed")
UNANSWERED: dict[str, Any] = {
    "loglikelihood": (0.0, False),
    "loglikelihood_rolling": 0.0,
    "generate_until": "",
}
"""What stands for an answer that was not asked for."""
Request = tuple[Any, list[int], list[int]]
"""What is scored: (context, continuation) or None, and the tokens of both."""


class FaithlensLM(_HARNESS_MODEL):
    """A model of lm-evaluation-harness under the constraint of a run.

    Attributes:
        attached: the constraint on the model.
        detector: what finds the false words.
        fingerprint: the model's, as the run has it.
        places: where it acts; ``places.acts = False`` closes the gate.
        answered: if not None, what the model has answered with a closed gate, by request. Requests
            whose gate stays closed are answered from there.
        open_only: with ``answered``, requests whose gate stays closed do not run at all, and get
            the same stand-in for an answer in both runs (`UNANSWERED`).
        bars: whether the harness shows its progress bars.
    """

    def __init__(
        self,
        pretrained: Any = None,
        run: Any = None,
        *,
        gate: str = "probe",
        plain_text: str = "refuse",
        detector: str | Path | Detector | None = None,
        gate_log: str | Path | None = None,
        dtype: Any = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """Load the model and attach the constraint.

        Args:
            pretrained: as model type ``hf`` takes it, or ``smollm2-135m``; by default the run's.
            run: the directory of a run that was evaluated, or what else ``interp.attach`` takes.
            gate: ``probe``, or ``closed``: the model as it is.
            plain_text: what happens to prompts that are no question in the chat format: ``refuse``
                raises an error, ``leave`` runs them without the constraint.
            gate_log: a file to which each prompt that the gate reads is added, with the words that
                it found.
            detector: one, or a directory with one, in place of the run's or the model's own.
            dtype: by default the run's.
            options: those of model type ``hf``.

        Raises:
            UserError: no run, another model than the run's, no detector, or an unknown choice.
        """
        if run is None:
            raise UserError("model type faithlens needs a run: --model_args run=DIRECTORY,…")
        check_choice("gate", gate, GATES)
        outside: PlainText = check_choice("plain_text", plain_text, PlainText)
        if intervention_of(run).gate == "soft":  # known before anything waits for the model
            raise UserError(
                "the harness measures gate probe, and this run was evaluated with gate soft: "
                "evaluate it with --gate probe"
            )
        folder = run_of(run)
        if not isinstance(pretrained, torch.nn.Module):
            options["dtype"] = dtype or _dtype_of(folder)
            options["device"] = device or ("cuda" if torch.cuda.is_available() else "cpu")
            pretrained = str(resolve(pretrained or _spec_of(folder)))
        super().__init__(pretrained, **options)
        given = load_detector(detector) if isinstance(detector, str | Path) else detector
        find = detector_places(self.model, self.tokenizer, run=folder, detector=given)
        self.detector, self.fingerprint = find.detector, model_info(find.model).fingerprint
        log = None if gate_log is None else Path(gate_log)
        self._system_prompts: dict[str, None] = {}
        find = replace(find, frame=QuestionFrame(self.tokenizer, self._system_prompts))
        self.places = PlacesInContexts(find, find.frame, plain_text=outside, log=log)
        self.places.acts = gate == "probe"
        self.attached = attach(self.model, self.tokenizer, run, at=self.places)
        self.answered: dict[tuple[str, str], Any] | None = None
        self.open_only, self.bars = False, True

    def get_model_info(self) -> dict[str, Any]:
        """As model type ``hf``, with what the gate did."""
        return super().get_model_info() | {"faithlens": self.places.counts}

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], *given: Any, **options: Any
    ) -> str:
        """As model type ``hf``; system prompts are noted, which are no part of a question."""
        systems = (turn["content"] for turn in chat_history if turn["role"] == "system")
        self._system_prompts.update(dict.fromkeys(systems))
        return super().apply_chat_template(chat_history, *given, **options)

    def fires(self, context: str) -> bool:
        """Whether the gate has opened at a context that has run."""
        return self.places.opened(tuple(self.tok_encode(context)))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As model type ``hf``; see ``answered``."""
        return self._unless_answered("loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """As model type ``hf``; see ``answered``. The gate reads prompts, and this has none."""
        return self._unless_answered("loglikelihood_rolling", requests, disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """As model type ``hf``; see ``answered``."""
        return self._unless_answered("generate_until", requests, disable_tqdm)

    def _unless_answered(self, kind: str, requests: Sequence[Any], disable_tqdm: bool) -> list[Any]:
        run = getattr(super(), kind)
        disable_tqdm = disable_tqdm or not self.bars
        if self.answered is None or any(map(_is_drawn, requests)):
            return run(requests, disable_tqdm=disable_tqdm)
        keys = [(kind, repr(request.args)) for request in requests]
        known = self._answered_closed(keys, requests, progress=not disable_tqdm)
        rest = {
            key: request for key, request in zip(keys, requests, strict=True) if key not in known
        }
        answers = run(list(rest.values()), disable_tqdm=disable_tqdm) if rest else []
        known |= zip(rest, answers, strict=True)
        if not self.places.acts:
            self.answered |= known
        return [known[key] for key in keys]

    def _answered_closed(
        self, keys: Sequence[tuple[str, str]], requests: Sequence[Any], *, progress: bool
    ) -> dict[tuple[str, str], Any]:
        """The requests that need not run, since the gate stays closed at them."""
        assert self.answered is not None
        if not self.places.acts and not self.open_only:
            return {}
        contexts = [request.args[0] if len(request.args) > 1 else "" for request in requests]
        opened = self._read(contexts, progress=progress)
        closed = [key for key, text in zip(keys, contexts, strict=True) if opened.get(text) is None]
        if self.open_only:
            return {key: UNANSWERED[key[0]] for key in closed}
        return {key: self.answered[key] for key in closed if key in self.answered}

    def _read(self, contexts: Sequence[str], *, progress: bool) -> dict[str, Span | None]:
        """The false words of every context that is not empty."""
        asked = {text: tuple(self.tok_encode(text)) for text in dict.fromkeys(contexts) if text}
        with self.attached.paused():
            spans = self.places.spans(list(asked.values()), progress=progress)
        return dict(zip(asked, spans, strict=True))

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """As model type ``hf``, with each row's false words found in its context."""
        disable_tqdm = disable_tqdm or not self.bars
        if not self.places.acts:
            with self.attached.paused():
                return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        found: list[Any] = [None] * len(requests)
        waiting = list(enumerate(self._rows(requests, progress=not disable_tqdm)))
        while waiting:
            # The same tokens may be two requests that part them differently into context and
            # continuation: one pass for each.
            rows: dict[Ids, Span | None] = {}
            now = [index for index, (row, span) in waiting if rows.setdefault(row, span) == span]
            with self.places.scoring(rows):
                answers = super()._loglikelihood_tokens(
                    [requests[index] for index in now], disable_tqdm, override_bs
                )
            for index, answer in zip(now, answers, strict=True):
                found[index] = answer
            waiting = [pair for pair in waiting if found[pair[0]] is None]
        return found

    def _rows(
        self, requests: Sequence[Request], *, progress: bool
    ) -> list[tuple[Ids, Span | None]]:
        """The tokens that run for each request, and the false words among them.

        A window of a rolling log-likelihood, and an empty context, are no prompt.
        """
        texts = [pair[0] if pair is not None else "" for pair, _, _ in requests]
        spans = self._read(texts, progress=progress)
        found = []
        for text, (_, context, continuation) in zip(texts, requests, strict=True):
            whole = [*context, *continuation]
            span = spans.get(text)
            if span is not None and whole[: span[1]] != self.tok_encode(text)[: span[1]]:
                raise UserError(
                    "a continuation changes the tokens of its prompt's question: the tokenizer "
                    "joins them"
                )
            cut = max(0, len(whole) - (self.max_length + 1))  # what is too long loses its beginning
            found.append((without_padding(whole[cut:-1]), _moved(span, cut)))
        return found

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """As model type ``hf``, whose trial runs are of no prompt."""
        before, self.places.acts = self.places.acts, False
        try:
            return super()._detect_batch_size(requests, pos)
        finally:
            self.places.acts = before


def _spec_of(run: Path | None) -> str:
    """The model that a run was made with."""
    if run is None:
        raise UserError("name the model (pretrained=…), or the directory of a run (run=…)")
    return recorded_spec(run)


def _dtype_of(run: Path | None) -> str:
    """The dtype that a run was made in."""
    return "float32" if run is None else str(read_manifest(run).get("dtype", "float32"))


def _is_drawn(request: Any) -> bool:
    """Whether an answer is drawn, and another one the next time."""
    return request.request_type == "generate_until" and bool(request.args[1].get("do_sample"))


def _moved(span: Span | None, by: int) -> Span | None:
    """A span in a text that has lost its first tokens; None if nothing of it is left."""
    if span is None or span[1] <= by:
        return None
    return max(0, span[0] - by), span[1] - by
