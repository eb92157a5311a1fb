"""The first stage of a run on premises: which facts the model knows, and their split."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from interp.errors import UserError
from interp.files.documents import read_json, write_json, write_jsonl, write_table
from interp.files.shape import check_shape
from interp.jobs import RUN_HERE, JobRunner, OutputSpec, Shard
from interp.models import render_chat
from interp.models.hooked_model import HookedModel
from interp.premises.encode import tokenize
from interp.premises.knowledge import FactKnowledge, Knowledge, KnowledgeCheck, check_knowledge
from interp.premises.questions import Premises, QuestionKind, Split, load_premises
from interp.runs.clock import with_clock
from interp.runs.identity import begin_run, check_run
from interp.runs.prompting import ENDS, PROMPTS, end_tokens
from interp.runs.resources import with_resources
from interp.runs.shards import digest_of

logger = logging.getLogger(__name__)

KINDS: tuple[QuestionKind, ...] = ("false", "twin", "masked")


def split_known(
    model: HookedModel,
    run: Path,
    file: str,
    *,
    identity: Mapping[str, Any],
    minimum: int,
    progress: bool = True,
    runner: JobRunner = RUN_HERE,
) -> Split:
    """The facts of a relation that the model knows, split into search and held-out part.

    Writes the run's identity, ``knowledge.csv``, ``known.json`` and ``premises.jsonl``, unless an
    earlier call of the same run has written them.

    Args:
        file: the name of the identity file.
        identity: has the settings ``premises``, ``seed``, ``limit`` and ``check``; the prompts and
            the tokens that end an answer are added.
        minimum: how many facts must be known.
        runner: has the facts asked; by default here, at once.

    Raises:
        UserError: another run in the directory, or too few known facts.
    """
    premises = load_premises(identity["premises"], seed=identity["seed"], limit=identity["limit"])
    identity = {
        **identity,
        ENDS: end_tokens(model.original_model),
        **prompts_identity(model.tokenizer, premises),
    }
    check_run(run, file, identity)
    if not (run / "known.json").is_file():
        job = KnowledgeJob(premises, identity["check"])
        asked = runner.run(
            knowledge_shard, model, job, description="knowledge", output=ASKED, progress=progress
        )
        knowledge = job.outcome(asked)
        logger.info(knowledge.summary)
        kept = knowledge.keep(premises, minimum=minimum)
        written = with_clock(with_resources(identity, model), model.tokenizer)
        begin_run(run, file, written)
        write_table(run / "knowledge.csv", knowledge.to_dataframe())
        content = {"subjects": list(kept.subjects), "summary": knowledge.summary}
        write_json(run / "known.json", {**content, "sha256": digest_of(content)})
    split = known_part(premises, run).split(seed=identity["seed"])
    write_jsonl(run / "premises.jsonl", premise_rows(split))
    return split


@dataclass(frozen=True)
class KnowledgeJob:
    """Facts that the model is asked for."""

    premises: Premises
    check: KnowledgeCheck

    @property
    def prompts_per_shard(self) -> int:
        """All facts: they are asked together."""
        return len(self.premises.facts)

    def order(self) -> Sequence[int]:
        """The facts as they are given."""
        return range(len(self.premises.facts))

    def take(self, prompts: Sequence[int]) -> "KnowledgeJob":
        """The same job for some of the facts."""
        facts = [self.premises.facts[index] for index in prompts]
        return replace(self, premises=self.premises.with_facts(facts))

    def identity(self) -> dict[str, Any]:
        """What decides the answers, beside the model; the group of an object does not."""
        near = self.premises.relation.near
        facts = [
            replace(fact, fields=tuple(field for field in fact.fields if field[0] != near))
            for fact in self.premises.facts
        ]
        return {"facts": [asdict(fact) for fact in facts], "check": self.check}

    def outcome(self, asked: Shard) -> Knowledge:
        """What the model knows, by the results of ``knowledge_shard``."""
        known = asked.tensors["known"].tolist()
        rows = zip(self.premises.facts, known, asked.texts, strict=True)
        return Knowledge(
            self.check,
            tuple(
                FactKnowledge(fact.subject, fact.object, is_known, answer)
                for fact, is_known, answer in rows
            ),
        )


ASKED = OutputSpec({"known": 1}, texts=True)


def knowledge_shard(model: HookedModel, job: KnowledgeJob, *, progress: bool = False) -> Shard:
    """``known`` [fact], and the answers as texts."""
    found = check_knowledge(model, job.premises, check=job.check, progress=progress).facts
    known = torch.tensor([fact.known for fact in found], dtype=torch.bool)
    return Shard({"known": known}, texts=[fact.answer for fact in found])


def known_part(premises: Premises, run: Path) -> Premises:
    """The premises about the facts that the model knows, according to the run.

    Raises:
        UserError: ``known.json`` is damaged, or was altered.
    """
    path = run / "known.json"
    content = read_json(path)
    if content.pop("sha256", None) != digest_of(content):
        raise UserError(
            f"{path} was changed after it was written: delete it, and repeat the command that made "
            "the run"
        )
    subjects = set(check_shape(content, {"subjects": [str]}, str(path))["subjects"])
    return premises.with_facts(fact for fact in premises.facts if fact.subject in subjects)


def prompts_digest(split: Split) -> str:
    """SHA-256 of all questions of both parts with their spans."""
    return digest_of(premise_rows(split))


def premise_rows(split: Split) -> list[dict[str, Any]]:
    """The lines of premises.jsonl: all questions of both parts with their spans."""
    rows = []
    for premises in (split.search, split.held_out):
        for question in premises.questions():
            row: dict[str, Any] = {"split": premises.part, **asdict(question)}
            if premises.distance != "any":  # rows without a distance stay as they always were
                row["distance"] = premises.distance_of(question)
            for kind in KINDS:
                filled = premises.fill(question, kind)
                row[kind] = {
                    "question": filled.text,
                    "subject_span": filled.subject,
                    "object_span": filled.object,
                }
            row["cloze"] = premises.cloze(question)
            rows.append(row)
    return rows


def prompts_identity(tokenizer: Any, premises: Premises) -> dict[str, str]:
    """The digest of every prompt that can be made from the premises, for a run's identity.

    It covers the rendered text and the tokens of the direct questions and of the questions with the
    false object, and the words of the twins and the masked questions. So it changes with the
    tokenizer, the chat template, and what a template reads from its environment, such as the date.
    """
    return {PROMPTS: digest_of(list(_prompts(tokenizer, premises)))}


def _prompts(tokenizer: Any, premises: Premises) -> Iterator[Any]:
    for fact in premises.facts:
        yield _rendered(tokenizer, premises.direct(fact), premises.cloze(fact))
    for question in premises.questions():
        yield [asdict(question), *(premises.fill(question, kind).text for kind in KINDS[1:])]
        yield _rendered(tokenizer, premises.fill(question, "false").text, premises.cloze(question))


def _rendered(tokenizer: Any, text: str, answer: str) -> Any:
    try:
        rendered = render_chat(tokenizer, text, answer)
    except UserError as error:  # the fact may be left out; if it is not, encoding raises this again
        return str(error)
    return [rendered.text, list(tokenize(tokenizer, rendered)["input_ids"])]
