"""``interp card`` as a function: a page for each of some heads of a run, on one of its prompts.

A run of ``interp locate`` gives the heads' effects and a false-premise question of its search part;
``interp patch`` (of ``z``) gives effects and a clean text; ``interp circuit`` gives scores of edges
and a clean text. Pages are written into the run's folder ``cards``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interp.commands.circuit import IDENTITY as CIRCUIT
from interp.commands.locate import EFFECTS
from interp.commands.locate_joint import load_search
from interp.commands.patch import IDENTITY as PATCH
from interp.errors import UserError
from interp.files.documents import read_json
from interp.files.links import check_links
from interp.files.shape import check_shape
from interp.heads.headset import Head
from interp.inspection.read_prompt import ReadPrompt, read_prompt
from interp.models.hooked_model import HookedModel
from interp.patching import EdgeEffects, PatchEffects
from interp.patching.circuit import parse_node
from interp.patching.effect_arrays import best_first
from interp.premises.encode import encode_premises
from interp.report.head_card import HeadResult, head_card
from interp.runs.manifest import check_same_model
from interp.tasks import Pairs, encode_pairs, read_pairs

FOLDER = "cards"
_HEAD = re.compile(r"a?(\d{1,6})\.h?(\d{1,6})", re.ASCII)


@dataclass(frozen=True)
class CardSettings:
    """Settings of ``interp card``."""

    head: tuple[str, ...] = ()
    """Heads as layer.head, such as 23.3; by default the first of the run."""
    count: int = 3
    """How many heads, where none is named."""
    prompt: int = 0
    """Which of the run's prompts the heads are shown on, from 0."""
    k: int = 10
    """How many tokens and edges are listed."""

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("prompt", 0), ("k", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        self.heads()

    def heads(self) -> list[Head]:
        """The named heads. Raises UserError for a name that is none."""
        found = []
        for name in self.head:
            match = _HEAD.fullmatch(name)
            if match is None:
                raise UserError(f"{name!r} is no head: name it layer.head, such as 23.3")
            found.append((int(match[1]), int(match[2])))
        return found


def card_run(model: HookedModel, run: Path, settings: CardSettings) -> list[Path]:
    """Write the cards of some heads of a run, and return their paths.

    Raises:
        UserError: a directory that is no such run, another model, or a head or prompt that is not
            there.
    """
    check_links(run)
    check_same_model(run, model)
    if (run / CIRCUIT).is_file() or (run / PATCH).is_file():
        results, read, answers = _of_pairs(model, run, settings.prompt)
    elif (run / EFFECTS).is_file():
        results, read, answers = _of_premises(model, run, settings.prompt)
    else:
        raise UserError(
            f"{run} has no effects of heads: give a run of interp locate, patch or circuit"
        )
    heads = settings.heads() or first_heads(results[0], settings.count)
    options: dict[str, Any] = {"answers": answers, "results": results, "k": settings.k}
    cards = [head_card(model, head, read, **options) for head in heads]
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    return [card.save(folder / f"{card.name}.html") for card in cards]


def first_heads(result: HeadResult, count: int) -> list[Head]:
    """The heads with the largest absolute effects, or with the largest edges out of them."""
    if isinstance(result, EdgeEffects):
        written = result.to_dataframe()["writer"]
        named = [name for name in written.drop_duplicates() if name.startswith("a")]
        return [(layer, head or 0) for layer, head in map(parse_node, named[:count])]
    table = result.to_dataframe()
    order = best_first(table["effect"].to_numpy(), by="absolute")[:count]
    rows = table.take(order)
    return list(zip(rows["layer"].tolist(), rows["head"].tolist(), strict=True))


def _of_pairs(
    model: HookedModel, run: Path, prompt: int
) -> tuple[list[HeadResult], ReadPrompt, list[int]]:
    """Results, prompt and answers of a run of ``interp patch`` or ``interp circuit``."""
    file = CIRCUIT if (run / CIRCUIT).is_file() else PATCH
    chat = check_shape(read_json(run / file), {"chat": bool}, str(run / file))["chat"]
    result: HeadResult
    if file == CIRCUIT:
        result = EdgeEffects.load(run / "edges.safetensors")
    else:
        result = PatchEffects.load(run / "effects.safetensors")
        if result.axes != ("prompt", "layer", "head"):
            raise UserError(
                f"{run} has effects over {', '.join(result.axes)}: cards need those of heads, of "
                "component z at all positions at once"
            )
    pair = _chosen(list(read_pairs(run / "pairs.jsonl")), prompt)
    encoded = encode_pairs(model.tokenizer, Pairs((pair,)), chat=chat)
    spans = {name: both[0][0] for name, both in encoded.spans.items()}
    read = read_prompt(model, pair.clean, chat=chat)
    ids = encoded.clean.tokens[0].tolist()
    answers = [int(encoded.answer), int(encoded.wrong)]
    return [result], _in_tokens(model, replace(read, spans=spans), ids), answers


def _of_premises(
    model: HookedModel, run: Path, prompt: int
) -> tuple[list[HeadResult], ReadPrompt, list[int]]:
    """Results, question and answers of a run of ``interp locate``."""
    _, split, effects = load_search(run)
    premises = split.search
    question = _chosen(list(premises.questions()), prompt)
    items = encode_premises(model.tokenizer, premises).items
    item = next(item for item in items if item.question == question)
    filled, cloze = premises.fill(question, "false"), premises.cloze(question)
    read = read_prompt(model, filled, opening=cloze)
    read = _in_tokens(model, read, list(item.false.tokens))
    return [*effects.values()], read, [item.true_token, item.false_token]


def _in_tokens(model: HookedModel, read: ReadPrompt, ids: Sequence[int]) -> ReadPrompt:
    """The prompt with the tokens that its answers share at its end."""
    shared = next(
        (i for i, (a, b) in enumerate(zip(read.ids, ids, strict=False)) if a != b), len(read.ids)
    )
    texts = [model.tokenizer.decode([token]) for token in ids[shared:]]
    return replace(read, ids=tuple(ids), tokens=(*read.tokens[:shared], *texts))


def _chosen(prompts: Sequence[Any], number: int) -> Any:
    if number >= len(prompts):
        raise UserError(f"there is no prompt {number}: the run has {len(prompts)}, from 0")
    return prompts[number]
