"""What is checked of every architecture, by the columns of the table.

A check compares one call of the engine with the reference. Those of a column are shown together.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import interp
from interp.forward.partial import record_run
from interp.heads.headset import Site
from interp.patching import patch, patch_heads, patch_paths
from tests.zoo.adapters import adapter_checks
from tests.zoo.generation import beam_checks, generation_checks
from tests.zoo.outcome import CLOSE, Outcome, judge
from tests.zoo.reference import keep
from tests.zoo.species import Species
from tests.zoo.specimen import CLEAN, CORRUPTED, SHORT, SPAN, Specimen, batch, metric

PADDED = 5e-5
STEPS = 2
"""Of the integral."""
Check = tuple[str, Callable[[], Any], Callable[[], Any], float]
"""Its name, the right value, the engine's, and how close they have to be."""
EXACT = {
    "z": ("z",),
    "q k v": ("q", "k", "v"),
    "pattern": ("pattern",),
    "attn_out mlp_out": ("attn_out", "mlp_out"),
    "resid": ("resid_pre", "resid_mid", "resid_post"),
}


def component_checks(one: Specimen, components: tuple[str, ...]) -> Iterator[Check]:
    """Exact patching; of the residual stream in a span, since everywhere it is the clean run."""
    for what in components:
        span = SPAN if what.startswith("resid") else None
        yield (
            what,
            lambda what=what, span=span: one.pair.exact(what, span),
            lambda what=what, span=span: patched(one, what, span=span),
            CLOSE,
        )


def patched(
    one: Specimen, what: str, *, span: tuple[int, int] | None = None, **more: Any
) -> Tensor:
    """The engine's effects [layer unit] of a component for the one pair."""
    if span is not None:
        more["positions"] = {"some": ([span], [span])}
    result = patch(
        one.model, batch(CLEAN), batch(CORRUPTED), metric(), component=what, progress=False, **more
    )
    values = result.values[0]
    return values.reshape(len(values), -1)


def path_checks(one: Specimen) -> Iterator[Check]:
    """Direct paths to the logits, and to one head's query."""
    pair = batch(CLEAN), batch(CORRUPTED), metric()
    yield (
        "to the logits",
        lambda: one.pair.paths(),
        lambda: patch_paths(one.model, *pair, progress=False).values[0],
        CLOSE,
    )
    receiver = one.heads([0])[-1]

    def right() -> Tensor:
        if not one.reference.has("q", receiver[0]):
            raise LookupError("no layer has q")
        return one.pair.paths(receiver)

    yield (
        "to a query",
        right,
        lambda: patch_paths(one.model, *pair, receivers=[receiver], progress=False).values[0],
        CLOSE,
    )


def first_order_checks(one: Specimen) -> Iterator[Check]:
    """AtP of what heads read, look at and write."""
    for what in ("z", "q", "k", "pattern"):
        yield (
            what,
            lambda what=what: one.pair.first_order(what),
            lambda what=what: patched(one, what, method="attribution"),
            CLOSE,
        )


def star_checks(one: Specimen) -> Iterator[Check]:
    """AtP* of outputs, and of keys by their exact patterns."""
    for what in ("z", "k"):
        yield (
            what,
            lambda what=what: one.pair.atp_star(what),
            lambda what=what: patched(one, what, method="atp*"),
            CLOSE,
        )


def integral_checks(one: Specimen) -> Iterator[Check]:
    """Integrated gradients."""
    yield (
        "z",
        lambda: one.pair.integrated("z", STEPS),
        lambda: patched(one, "z", method="ig", steps=STEPS),
        CLOSE,
    )


def padding_checks(one: Specimen) -> Iterator[Check]:
    """A long and a short pair in one batch are what each is alone."""
    both = (CLEAN, SHORT[0]), (CORRUPTED, SHORT[1])
    with_heads = bool(one.layers) and one.reference.has("z", one.layers[0])
    what = "z" if with_heads else "resid_pre"
    span = None if with_heads else (2, 4)

    def alone() -> Tensor:
        pairs = (one.pair, one.short_pair)
        return torch.stack([pair.exact(what, span) for pair in pairs])

    def left() -> Tensor:
        positions = "all" if span is None else {"some": ([span] * 2, [span] * 2)}
        clean, corrupted = (batch(*prompts) for prompts in both)
        values = patch(
            one.model,
            clean,
            corrupted,
            metric(2),
            component=what,
            positions=positions,
            progress=False,
        ).values
        return values.reshape(2, len(values[0]), -1)

    yield "left", alone, left, PADDED
    if not with_heads:
        return

    def right() -> Tensor:
        width = len(CLEAN)
        clean, corrupted = (
            torch.tensor([[*ids, *[1] * (width - len(ids))] for ids in prompts]) for prompts in both
        )
        mask = torch.tensor([[at < len(ids) for at in range(width)] for ids in both[0]])
        values = patch_heads(one.model, clean, corrupted, metric(2), mask=mask, progress=False)
        bare = torch.stack([one.pair.bare(), one.short_pair.bare()])
        return values - bare[:, None, None]

    yield "right", alone, right, PADDED


def site_checks(one: Specimen, site: Site) -> Iterator[Check]:
    """``constrain`` in one pass, and ``locate_heads``, at a site."""
    cutting = site == "attention"
    some = one.heads([0, 2])
    need = one.need_patterns if cutting else one.need_heads
    edits_of = one.cuts if cutting else one.silences

    @torch.no_grad()
    def constrained() -> Tensor:
        need()
        logits = one.reference.logits(CLEAN, edits_of(some, SPAN))
        if cutting:
            agrees_with_own_mask(one, some, logits)
        return logits

    @torch.no_grad()
    def under_constraint(heads: list[tuple[int, int]]) -> Tensor:
        with interp.constrain(one.model, heads, at=[SPAN], site=site):
            return one.model(torch.tensor([CLEAN]))[0, -1].float()

    yield "constrain", constrained, lambda: under_constraint(some), CLOSE
    if one.layer_without_heads is not None:
        none_there = [(one.layer_without_heads, 0)]
        yield (
            "no heads in a layer",
            lambda: "refused",
            lambda: refused(lambda: under_constraint(none_there)),
            CLOSE,
        )
    few = tuple(dict.fromkeys([*one.heads([1]), one.heads([3])[-1]]))

    @torch.no_grad()
    def effects() -> Tensor:
        need()
        found = torch.full((2, one.reference.n_layers, one.reference.n_heads), torch.nan)
        for row, (ids, span, difference) in enumerate(premises_of(one)):
            bare = difference(one.reference.logits(ids))
            for layer, head in few:
                logits = one.reference.logits(ids, edits_of([(layer, head)], span))
                found[row, layer, head] = difference(logits) - bare
        return found

    def located(**more: Any) -> Tensor:
        return interp.locate_heads(
            one.model,
            one.encoded,
            site=site,
            progress=False,
            **more,  # type: ignore[arg-type]
        ).values

    yield "locate", effects, lambda: located(method="activation", heads=few), CLOSE
    if cutting:
        yield (
            "locate, first order",
            lambda: first_order_cuts(one),
            lambda: located(method="attribution"),
            CLOSE,
        )


def refused(ask: Callable[[], Any]) -> Any:
    """What is right to turn down: "refused", or what came instead."""
    try:
        return ask()
    except interp.UserError:
        return "refused"


def premises_of(one: Specimen) -> Iterator[tuple[list[int], tuple[int, int], Any]]:
    """Of every premise: its tokens, where the object is, and the metric of its logits."""
    encoded = one.encoded
    for row, item in enumerate(encoded.items):
        right, wrong = int(encoded.true_tokens[row]), int(encoded.false_tokens[row])
        difference = lambda logits, right=right, wrong=wrong: logits[right] - logits[wrong]  # noqa: E731
        yield list(item.false.tokens), item.false.object, difference


def first_order_cuts(one: Specimen) -> Tensor:
    """Change of each pattern by its cut, times the metric's gradient there [prompt layer head]."""
    one.need_patterns()
    reference = one.reference
    found = torch.full((2, reference.n_layers, reference.n_heads), torch.nan)
    every = one.heads(range(reference.n_heads))
    at = [("pattern", layer) for layer in one.layers]
    for row, (ids, span, difference) in enumerate(premises_of(one)):
        seen: dict[Any, Tensor] = {}
        look = {place: keep(seen, place) for place in at}
        with torch.enable_grad():
            value = difference(reference.logits(ids, look))
        slopes = torch.autograd.grad(value, [seen[place] for place in at], materialize_grads=True)
        for place, slope in zip(at, slopes, strict=True):
            layer = place[1]
            cut: dict[str, Tensor] = {}
            edits = one.cuts([head for head in every if head[0] == layer], span)
            with torch.no_grad():
                reference.logits(ids, {**edits, place: lambda v, cut=cut: cut.update(p=v)})
            product = (cut["p"] - seen[place].detach()) * slope
            found[row, layer] = product.sum(dim=(0, 2, 3))
    return found


def agrees_with_own_mask(one: Specimen, heads: list[tuple[int, int]], logits: Tensor) -> None:
    """Where transformers takes a mask [prompt head query key], it has to say the same.

    Raises:
        AssertionError: the reference's cut is not what the mask does.
    """
    size, reference = len(CLEAN), one.reference
    low = torch.finfo(torch.float32).min
    open_mask = torch.full((size, size), low).triu(1).expand(1, reference.n_heads, -1, -1)
    try:
        free = reference.logits(CLEAN, attention_mask=open_mask)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return
    if float((free - reference.logits(CLEAN)).abs().max()) > 1e-5:
        return  # it means something else there, or layers have windows that it would open
    mask = open_mask.clone()
    mask[:, sorted({head for _, head in heads}), SPAN[1] :, SPAN[0] : SPAN[1]] = low
    by_mask = reference.logits(CLEAN, attention_mask=mask)
    assert float((by_mask - logits).abs().max()) < 1e-4, "the cut is not the mask's"


COLUMNS: dict[str, Callable[[Specimen], Iterator[Check]]] = {
    **{
        column: lambda one, components=components: component_checks(one, components)
        for column, components in EXACT.items()
    },
    "paths": path_checks,
    "AtP": first_order_checks,
    "AtP*": star_checks,
    "IG": integral_checks,
    "site output": lambda one: site_checks(one, "output"),
    "site attention": lambda one: site_checks(one, "attention"),
    "generate": generation_checks,
    "beams": beam_checks,
    "padding": padding_checks,
    "MoELoRA": adapter_checks,
}
"""The columns of the table, in its order."""


def run_checks(species: Species, columns: list[str] | None = None) -> dict[str, list[Outcome]]:
    """The outcomes of an architecture by column; "hooks" says how its sweeps run, or why not."""
    one = Specimen(species)
    first = judge("hooks", lambda: one.reference and "hooked", lambda: one.model and "hooked")
    found = {"hooks": [first]}
    if first.kind != "yes":
        return found
    try:
        fast = record_run(one.model, batch(CLEAN)).plain is not None
        found["hooks"] = [Outcome("hooks", "yes", "fast" if fast else "hooked")]
    except interp.UserError as error:
        found["hooks"] = [Outcome("hooks", "yes", f"not recorded: {error}")]
    except Exception as error:
        found["hooks"] = [Outcome("hooks", "FAIL", f"{type(error).__name__}: {error}")]
    for column in columns or COLUMNS:
        found[column] = [judge(*check) for check in COLUMNS[column](one)]
    return found
