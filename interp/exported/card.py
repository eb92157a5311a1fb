"""The card of an exported directory: README.md, with front matter that the hub reads."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from interp.errors import UserError
from interp.exported.bake_cost import RUNS
from interp.exported.folder import INTERVENTION, Weights
from interp.figures.measures import MISSING, Measure, format_number, format_small
from interp.figures.tables import comparison_table
from interp.heads.origin import Origin
from interp.interventions.intervention import Intervention
from interp.models.spec import shown_spec
from interp.report.markdown import markdown_table, plain_text
from interp.report.summary import summary_sentences

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FOUND = {
    "searched": "their effects were measured on the search part of",
    "check": "which facts the model knows, by the check",
    "limit": "facts tried",
    "n_prompts": "questions in that search",
    "n_subjects": "subjects they are about",
}
"""What is noted of a search, in words."""
_ALWAYS: tuple[str, ...] = (
    "The figures are of this model and of the kind of question that they were measured on; other "
    "questions, languages and fine-tuned relatives need measurements of their own.",
    "Constrained heads make the model rely on what it knows: where it knows nothing, or something "
    "wrong, its answer is no better.",
)
"""Limits of any constraint."""
MOST_HEADS = 50
"""Heads in the card's table; the intervention's file has all."""


def render_card(
    intervention: Intervention,
    evaluation: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    weights: Weights,
    baked: Mapping[str, Any] | None = None,
    transferred: bool = False,
) -> str:
    """The card.

    Args:
        evaluation: the run's evaluation.json, of the setting that is exported.
        model: the base model's entries in export.json.
        baked: what `interp.exported.bake_cost.bake_cost` found.
        transferred: the base model is a relative of the evaluated one.
    """
    name = plain_text(shown_spec(model["spec"]))
    parts = [
        _front_matter(model["spec"]),
        f"# {name}: {plain_text(intervention.name)}\n",
        _purpose(intervention, name, weights),
        _use(weights, intervention),
        _figures(evaluation, transferred=transferred),
    ]
    if baked is not None:
        parts.append(_baked(baked))
    parts += [_heads(intervention), _limits(intervention, weights), _made(intervention, model)]
    return "\n".join(parts)


def render_heads_card(intervention: Intervention) -> str:
    """The card of heads that are handed over alone: without a model, a detector, or an evaluation.

    Raises:
        UserError: heads that do not say which model they are of.
    """
    origins = [part.heads.origin for part in intervention.heads]
    models = {origin and origin.fingerprint for origin in origins}
    origin, name = next(iter(origins), None), plain_text(intervention.name)
    if origin is None or len(models) > 1 or intervention.experts:
        raise UserError(
            "heads that are handed over must say which one model they are of, and experts cannot: "
            "note it with interp.heads.found_on(heads, model, effects)"
        )
    model = plain_text(shown_spec(origin.model))
    use = (
        "## Use\n\n```python\nimport interp\n\n"
        "file = interp.from_hub(NAME)  # this repository's name\n"
        'with interp.attach(model, tokenizer, file, false_object="..."):  # a transformers model\n'
        "    model.generate(...)\n```\n\n"
        "`interp.Intervention.load(file, model=...)` is what `interp.constrain` and "
        "`interp.evaluate` take. Another model than the one below is refused.\n"
    )
    scored = "Only the effects in the search are noted here, and not what the constraint costs."
    limits = "".join(f"- {line}\n" for line in (scored, *_ALWAYS))
    made = {
        **{"spec": origin.model, "fingerprint": origin.fingerprint},
        **{"n_layers": origin.n_layers, "n_heads": origin.n_heads},
    }
    return "\n".join(
        [
            _front_matter(origin.model, library="faithlens"),
            f"# {model}: {name}\n",
            f"Attention heads of {model} that go along with false premises ({name}).\n",
            use,
            _heads(intervention),
            f"## Limits\n\n{limits}",
            _made(intervention, made),
        ]
    )


def _front_matter(spec: str, *, library: str = "transformers") -> str:
    content: dict[str, Any] = {}
    if _HUB_ID.fullmatch(spec):
        content["base_model"] = spec
    content["library_name"] = library
    content["tags"] = ["faithlens", "attention-heads", "false-premise", "intervention"]
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---\n"


def _purpose(intervention: Intervention, name: str, weights: Weights) -> str:
    if weights == "baked":
        where = "at every token of every text, since it is written into the weights"
    elif intervention.gate == "oracle":
        where = "at the words that the caller says are false"
    else:
        where = "at the words of a question that a detector takes to be false"
    return (
        f"Constrains attention heads of {name} that go along with false premises "
        f"({plain_text(intervention.name)}), {where}.\n"
    )


def _use(weights: Weights, intervention: Intervention) -> str:
    if weights == "baked":
        return (
            "## Use\n\nAn ordinary checkpoint: `AutoModelForCausalLM` of transformers reads this "
            "directory, and so does any program that reads such.\n"
        )
    words = ', false_object="..."' if intervention.gate == "oracle" else ""
    return (
        "## Use\n\n```python\nimport interp\n\n"
        f"model, tokenizer = interp.load_exported(DIR{words})\n```\n\n"
        "DIR is this directory, or its name on the hub. The model is one of transformers; the base "
        f"model's weights {'are in it' if weights == 'beside' else 'are found by its name'}.\n"
    )


def _figures(evaluation: Mapping[str, Any], *, transferred: bool) -> str:
    table = comparison_table(evaluation)
    rows = table.astype(str).to_numpy().tolist()
    lines = ["## What it does and what it costs\n"]
    if transferred:
        lines.append(
            "**Measured on the model that the heads were found on. On this relative of it nothing "
            "was measured.**\n"
        )
    lines += [f"- {plain_text(sentence)}" for sentence in summary_sentences(evaluation)]
    lines.append(
        "\nHeld-out questions about subjects and in templates that the search did not see, with "
        "95 % intervals over subjects. *Twins* are the same questions with the true object.\n"
    )
    lines.append(markdown_table([str(column) for column in table.columns], rows))
    return "\n".join(lines)


def _baked(baked: Mapping[str, Any]) -> str:
    names = {
        "unconstrained": "no constraint",
        "at_false_words": "constraint at the false words, told where",
        "everywhere": "these weights: at every token",
    }
    rows = [[names[run], *cells] for run, cells in zip(RUNS, baked_cells(baked), strict=True)]
    n = baked["false_premise"]["unconstrained"]["n"]
    return (
        "## These weights beside the constraint\n\n"
        f"{n} held-out false premises and as many twins:\n\n"
        + markdown_table(["", *BAKED_COLUMNS], rows)
        + "\nGain and cost are paired by prompt. KL and perplexity are on neutral sentences; the "
        "constraint acts at one word of each.\n"
    )


BAKED_COLUMNS = (
    *("prefers the true object, false premises", "P(true), false premises", "P(true), twins"),
    *("gain", "cost", "neutral KL, nats", "neutral perplexity ratio"),
)


def baked_cells(baked: Mapping[str, Any]) -> list[list[str]]:
    """The cells of each run in ``baked.json``, in the order of `BAKED_COLUMNS`."""
    rows = []
    for run in RUNS:
        neutral = baked["neutral"].get({"at_false_words": "at_one_word"}.get(run, run))
        rows.append(
            [
                Measure(*baked["false_premise"][run]["preference_accuracy"]).format(),
                Measure(*baked["false_premise"][run]["p_true_object"]).format(),
                Measure(*baked["true_premise"][run]["p_true_object"]).format(),
                *(
                    Measure(*baked[what][run]).format() if run in baked[what] else MISSING
                    for what in ("gain", "cost")
                ),
                MISSING if neutral is None else format_small(neutral["neutral_kl"]),
                MISSING
                if neutral is None
                else format_number(neutral["neutral_perplexity_ratio"], 3),
            ]
        )
    return rows


def _heads(intervention: Intervention) -> str:
    lines = ["## How the heads were found\n"]
    for part in intervention.heads:
        origin = part.heads.origin
        lines.append(f"{plain_text(part.name)}; chosen by: {plain_text(part.heads.chosen_by)}.\n")
        if origin is not None:
            lines += [*_origin_lines(origin), ""]
        scores = {} if origin is None else {(s["layer"], s["head"]): s for s in origin.scores}
        rows = [
            [str(layer), str(head), *_score(scores.get((layer, head)))]
            for layer, head in part.heads
        ]
        lines.append(markdown_table(["layer", "head", "effect, logits", "q"], rows[:MOST_HEADS]))
        if len(rows) > MOST_HEADS:
            lines.append(f"and {len(rows) - MOST_HEADS} more, in `{INTERVENTION}`.\n")
    lines.append(
        "An effect is how much the logit difference between the true and the false object rises "
        "without the head's part, in the search.\n"
    )
    return "\n".join(lines)


def _origin_lines(origin: Origin) -> Iterable[str]:
    for name, value in origin.found.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield f"- {_FOUND.get(name, plain_text(name))}: {plain_text(text)}"
    found = origin.stability
    if found.get("jaccard") and found.get("chance") is not None:
        yield (
            f"- stability of that search: its best {found.get('n_heads')} heads overlap (Jaccard) "
            f"by {plain_text(Measure(*found['jaccard']).format())} between {found.get('over')}, by "
            f"chance by {format_number(found['chance'])}"
        )


def _score(score: Mapping[str, Any] | None) -> list[str]:
    if score is None or score.get("effect") is None:
        return [MISSING, MISSING]
    ends = [score.get("ci_low"), score.get("ci_high")]
    interval = [] if None in ends else ends
    q_value = score.get("q_value")
    return [
        Measure(score["effect"], *interval).format(),
        MISSING if q_value is None else format_small(q_value),
    ]


def _limits(intervention: Intervention, weights: Weights) -> str:
    lines = list(_ALWAYS)
    if weights == "baked":
        lines.append(
            "The weights act on all texts, also where there is no false premise; see the cost "
            "above. What they do to other tasks was not measured."
        )
    elif intervention.gate == "oracle":
        lines.append("Somebody has to say which words are false; it acts there and nowhere else.")
    else:
        lines.append(
            "The detector reads the model's activations, not the world: it misses false premises, "
            "and now and then fires on a true one."
        )
    lines.append(
        "The hashes in `export.json` show damage and careless edits, not who made the files."
    )
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def _made(intervention: Intervention, model: Mapping[str, Any]) -> str:
    origins = [part.heads.origin for part in intervention.heads if part.heads.origin is not None]
    versions = ", ".join(f"{name} {version}" for name, version in _versions(origins).items())
    quantized = f", {plain_text(model['quantization'])}" if model.get("quantization") else ""
    dtype = f", {plain_text(model['dtype'])}" if model.get("dtype") else ""
    lines = [
        f"- base model: {plain_text(shown_spec(model['spec']))}, {model['n_layers']} layers of "
        f"{model['n_heads']} heads{dtype}{quantized}",
        f"- its fingerprint (configuration and weights): `{plain_text(model['fingerprint'])}`",
        f"- found with: {plain_text(versions) or MISSING}",
        "- the base model's licence applies to its weights",
    ]
    return "## Model and versions\n\n" + "\n".join(lines) + "\n"


def _versions(origins: list[Origin]) -> Mapping[str, str]:
    return origins[0].versions if origins else {}
