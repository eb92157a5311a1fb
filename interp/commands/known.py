"""The first stage of a run on premises: which facts the model knows, and their split."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interp.commands.prompts_identity import prompts_identity
from interp.errors import UserError
from interp.files import check_shape
from interp.files.documents import read_json, write_json, write_jsonl, write_table
from interp.models.hooked_model import HookedModel
from interp.premises.knowledge import check_knowledge
from interp.premises.questions import Premises, Split, load_premises
from interp.runs.clock import with_clock
from interp.runs.identity import begin_run, check_run
from interp.runs.pass_memory import with_budget
from interp.runs.prompting import ENDS, end_tokens
from interp.runs.shards import digest_of
from interp.runs.threads import with_threads

logger = logging.getLogger(__name__)


def split_known(
    model: HookedModel,
    run: Path,
    file: str,
    identity: Mapping[str, Any],
    *,
    minimum: int,
    progress: bool = True,
) -> Split:
    """The known facts of a relation, split; what the model knows is the first thing in a run.

    Writes the run's identity, ``knowledge.csv``, ``known.json`` and ``premises.jsonl``, unless the
    same run has left them.

    Args:
        file: the name of the file that holds the identity.
        identity: with the settings ``premises``, ``seed``, ``limit`` and ``check``; the prompts and
            the tokens that end an answer are added to it.
        minimum: how many facts must be known.

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
        knowledge = check_knowledge(model, premises, check=identity["check"], progress=progress)
        logger.info(knowledge.summary)
        kept = knowledge.keep(premises, minimum=minimum)
        written = with_budget(with_threads(identity), model)
        begin_run(run, file, with_clock(written, model.tokenizer))
        write_table(run / "knowledge.csv", knowledge.to_dataframe())
        content = {"subjects": list(kept.subjects), "summary": knowledge.summary}
        write_json(run / "known.json", {**content, "sha256": digest_of(content)})
    split = known_part(premises, run).split(seed=identity["seed"])
    write_jsonl(run / "premises.jsonl", premise_rows(split))
    return split


def known_part(premises: Premises, run: Path) -> Premises:
    """The premises about the facts that the run found to be known.

    Raises:
        UserError: ``known.json`` is damaged, or was altered.
    """
    path = run / "known.json"
    content = read_json(path)
    if content.pop("sha256", None) != digest_of(content):
        raise UserError(
            f"{path} was altered since it was written: delete it, and give the "
            "command that made the run again"
        )
    subjects = set(check_shape(content, {"subjects": [str]}, str(path))["subjects"])
    return premises.with_facts(fact for fact in premises.facts if fact.subject in subjects)


def prompts_digest(split: Split) -> str:
    """SHA-256 of every question of both parts with its spans: what a run's prompts are."""
    return digest_of(premise_rows(split))


def premise_rows(split: Split) -> list[dict[str, Any]]:
    """The lines of premises.jsonl: every question of both parts with its spans."""
    rows = []
    for premises in (split.search, split.held_out):
        for question in premises.questions():
            row: dict[str, Any] = {"split": premises.part, **asdict(question)}
            for kind in ("false", "twin", "masked"):
                filled = premises.fill(question, kind)
                row[kind] = {
                    "question": filled.text,
                    "subject_span": filled.subject,
                    "object_span": filled.object,
                }
            row["cloze"] = premises.cloze(question)
            rows.append(row)
    return rows
