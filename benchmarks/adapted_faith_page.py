"""Write docs/experts_heads.md: what experts do to heads, and what was measured of it.

    python benchmarks/adapted_faith.py      # first: benchmarks/results/adapted_faith.json
    python benchmarks/adapted_faith_page.py

Without that file the page says what the functions do, and nothing else.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from interp.statistics.significance import mean_interval

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "adapted_faith.json"
ORIGINS = (("base", "base"), ("adapted", "base"), ("adapted", "adapted"))


@dataclass(frozen=True)
class Options:
    """Where the measurements are, and where the page goes."""

    results: Path = RESULTS
    page: Path = ROOT / "docs" / "experts_heads.md"


ABOUT = """# Experts and heads

A MoELoRA adapter on query and value projections acts through attention heads. This page is about
`interp.experts.heads`: what each expert adds to each head, whether it matters, whether fine-tuning
moved the false-premise heads, and FAITH on an adapted model.

```python
from interp.experts.heads import (
    adapter_gain,
    compare_heads,
    expert_contributions,
    rank_expert_contributions,
    slice_effects,
)

model = interp.moelora.hooked(adapted, tokenizer)
heads = interp.locate_heads(base, split.search).select(count=8)

expert_contributions(model, split.held_out, component="q").plot()
feeding = rank_expert_contributions(model, split.held_out, heads)
slice_effects(model, split.held_out, feeding.slices(6), head_effect="output")
compare_heads(interp.locate_heads(base, split.search), interp.locate_heads(model, split.search))
adapter_gain(model, split.held_out, heads).to_dict()
```

- **`expert_contributions`**: a projection gives `base + Σ gate_i · expert_out_i`, exactly. Per
  prompt, layer, head and expert, at the chosen tokens: the norm of the expert's term over the norm
  of the head's query or value (its *part*), and its projection on it (its *share*; with the base's,
  shares sum to one). The result holds the largest error of the sum.
- **`rank_expert_contributions`**: experts ranked by their part in given heads. Per expert the exact
  permutation p-value of which heads of the layer are the chosen ones (not below 1/9 for one head of
  nine); for the adapter as a whole, random heads of the same layers.
- **`slice_effects`**, the causal version: the columns of one head in one expert's output are set to
  zero at every position. Change of logit(true) − logit(false), and of the head's own effect.
- **`compare_heads`**: effects of two models on the same prompts. Spearman correlation and Jaccard
  index of the top heads with intervals over subjects, the level of chance, and the correlation
  between random halves of the subjects within each model, below which "moved" begins.
- **`adapter_gain`**: the adapter's gain, and what is lost of it when its part in the heads' queries
  and values is switched off; the same for random heads.

With grouped queries a value belongs to a key/value head that serves a group of query heads (three
in the embedded model). Nothing can be taken from the value of one query head alone: results name
the group, and nulls draw other groups.

`locate_heads`, `evaluate` and `constrain` take the hooked adapted model as any other. Sweeps run on
its plain modules; edits of experts themselves run on the hooked model, from the first edited layer
on.
"""


def over_seeds(results: dict[str, Any], key: str, kind: str, run: int) -> list[float]:
    """Preference accuracy over the prompts of all seeds, with subjects resampled: value, low, high.

    A subject that is held out in several seeds is one subject.
    """
    parts = [seed[key][kind] for seed in results["seeds"]]
    subjects = [subject for part in parts for subject in part["subjects"]]
    return list(mean_interval([one for part in parts for one in part["prefers"][run]], subjects))


def gain_over_seeds(results: dict[str, Any], key: str) -> list[float]:
    """Constrained less unconstrained accuracy on false premises, paired by prompt."""
    parts = [seed[key]["false"] for seed in results["seeds"]]
    subjects = [subject for part in parts for subject in part["subjects"]]
    gains = [b - a for part in parts for a, b in zip(*part["prefers"], strict=True)]
    return list(mean_interval(gains, subjects))


def mean_over(results: dict[str, Any], *keys: str | int) -> float:
    """A number of every seed, averaged."""
    found = []
    for seed in results["seeds"]:
        value: Any = seed
        for key in keys:
            value = value[key]
        found.append(float(value))
    return sum(found) / len(found)


def interval(values: list[float]) -> str:
    """A value with its interval."""
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def settings_of(results: dict[str, Any]) -> list[str]:
    """Such as ``output 8``, in order."""
    return [key.removesuffix(": shift") for key in results["seeds"][0] if key.endswith(": shift")]


def table(results: dict[str, Any]) -> str:
    """Base and adapted model, without and with FAITH."""
    lines = [
        "| model | constraint | false premises | gain | random sets | twins | P(true), twins |\n"
        "|---|---|---|---|---|---|---|\n"
    ]

    def row(key: str, run: int, model: str, what: str, gain: str, null: str) -> str:
        p_true = [p for seed in results["seeds"] for p in seed[key]["twin"]["p_true"][run]]
        cells = [
            model, what, interval(over_seeds(results, key, "false", run)), gain, null,
            interval(over_seeds(results, key, "twin", run)), f"{sum(p_true) / len(p_true):.2f}",
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |\n"

    settings = settings_of(results)
    for model in ("base", "adapted"):
        lines.append(row(f"{settings[0]}: {model}, heads of base", 0, model, "none", "–", "–"))
        for setting in settings:
            for name, origin in ORIGINS:
                if name != model:
                    continue
                key = f"{setting}: {name}, heads of {origin}"
                null = mean_over(
                    results, key, "summary", "random_null", "preference_accuracy", "mean"
                )
                gain = interval(gain_over_seeds(results, key))
                what = f"{setting}, heads of the {origin} model"
                lines.append(row(key, 1, model, what, gain, f"{null:.2f}"))
    return "".join(lines)


def answers_table(results: dict[str, Any]) -> str:
    """Which objects greedy answers name, first seed; empty if they were not asked for."""
    first, lines = results["seeds"][0], []
    for setting in settings_of(results):
        for name, origin in ORIGINS:
            summary = first[f"{setting}: {name}, heads of {origin}"]["summary"]
            kinds = summary["splits"]["held_out"]
            for run in ("baseline", "constrained"):
                cells = [
                    kinds[kind][run][f"{which}_object_mention_rate"]
                    for kind, which in (
                        ("false_premise", "true"),
                        ("false_premise", "false"),
                        ("true_premise", "true"),
                    )
                ]
                if None in cells:
                    return ""
                what = "none" if run == "baseline" else f"{setting}, heads of the {origin} model"
                lines.append(f"| {name} | {what} | {' | '.join(map(interval, cells))} |\n")
    header = (
        "| model | constraint | names the true object | names the false object | "
        "twins: names the true object |\n|---|---|---|---|---|\n"
    )
    return header + "".join(dict.fromkeys(lines))


def shift_table(results: dict[str, Any]) -> str:
    """Whether the heads moved, per seed and site."""
    lines = [
        "| seed | heads | Spearman | halves: base, adapted, between | Jaccard, top 10 (chance) | "
        "changed at FDR 5 % | effect of the base model's heads | shared |\n"
        "|---|---|---|---|---|---|---|---|\n"
    ]
    for seed in results["seeds"]:
        for setting in settings_of(results):
            one = seed[f"{setting}: shift"]
            halves = ", ".join(
                f"{one['halves'][name]:.2f}"
                for name in ("within_before", "within_after", "between")
            )
            effect, count = one["effect_of_base_heads"], len(one["heads"]["base"])
            cells = [
                str(seed["seed"]), setting, interval(one["spearman"]), halves,
                f"{interval(one['jaccard'])} ({one['chance_jaccard']:.2f})",
                f"{one['changed_at_fdr_0.05']} of {one['n_heads']}",
                f"{effect['before']:.2f} → {effect['after']:.2f}", f"{one['shared']} of {count}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def gain_table(results: dict[str, Any]) -> str:
    """The adapter's gain, and what is lost of it without its part in the heads."""
    lines = [
        "| seed | heads | measure | gain of the adapter | lost without its part in the heads | "
        "lost, random heads: mean, 95 % | percentile |\n|---|---|---|---|---|---|---|\n"
    ]
    for seed in results["seeds"]:
        for setting in settings_of(results):
            for measure, one in seed[f"{setting}: gain"].items():
                null = one["random_lost"]
                cells = [
                    str(seed["seed"]), setting, measure.replace("_", " "), interval(one["gain"]),
                    interval(one["lost"]), f"{null['mean']:.2f}, {null['p95']:.2f}",
                    f"{one['percentile']:.0f}",
                ]  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def experts_tables(results: dict[str, Any]) -> str:
    """Who feeds the heads, and what happens without, for the first seed."""
    first, parts = results["seeds"][0], []
    for setting in settings_of(results):
        found = first.get(f"{setting}: experts")
        if found is None:
            continue
        whole = [
            f"{row['component']}: {row['relative_norm']:.3f}, random heads "
            f"{row['random_mean']:.3f} (p = {row['p_value']:.3f})"
            for row in found["adapter"]
            if row["n_sets"]
        ]
        parts.append(f"### {setting}\n\nThe adapter's part in the heads: {'; '.join(whole)}.\n\n")
        parts.append(
            "| slice | in | change of the logit difference | q | change of the head's effect |\n"
            "|---|---|---|---|---|\n"
        )
        for row in found["slices"]:
            low, high = row["ci_low"], row["ci_high"]
            effect = f"{row['effect']:.3f}"
            if low is not None:
                effect += f" [{low:.3f}, {high:.3f}]"
            q = "–" if row["q_value"] is None else f"{row['q_value']:.3f}"
            parts.append(
                f"| {row['slice']} | {row['in']} | {effect} | {q} | {row['head_effect']:.3f} |\n"
            )
        parts.append("\n")
    return "".join(parts)


def measured(results: dict[str, Any]) -> str:
    """The part of the page that is measured."""
    options, training = results["options"], results["training"]
    held_out = [seed["n_subjects"] for seed in results["seeds"]]
    seconds = sum(seed["seconds"] for seed in results["seeds"]) / len(held_out)
    rows = ", ".join(
        f"{name} {one['kept']} of {one['rows']}" for name, one in results["training_rows"].items()
    )
    trained = f"trained here for {training['steps']} steps of {options['batch']}"
    if options["adapter"] is not None:
        trained = f"from a given run of {training['steps']} steps"
    accuracy = ", ".join(f"{task} {one['value']:.2f}" for task, one in training["accuracy"].items())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    answers = answers_table(results)
    if answers:
        answers = f"## Greedy answers\n\nFirst seed, bare questions.\n\n{answers}\n"
    return f"""
# Measured

Made by `benchmarks/adapted_faith.py` and `benchmarks/adapted_faith_page.py` from
`benchmarks/results/adapted_faith.json`. {options["model"]}, relation {options["premises"]}, the
first {options["limit"]} facts, of which the base model knows {results["known"]} (strict check).

The adapter was {trained}, on training rows that name no evaluated subject in any role
{f"({rows})" if rows else ""}: {results["evaluated"]} facts are evaluated, of which the adapted
model knows {results["still_known"]}. Questions with false premises were trained on through the
relations' search templates only. Accuracy on held-out questions of the sets: {accuracy}.

Half of the subjects and two templates are searched, {", ".join(map(str, held_out))} subjects in the
other two templates are scored. Share of prompts that prefer the true object, over
{len(held_out)} seeds, with 95 % intervals from resampling subjects (a subject that several seeds
hold out is one). Random sets: {options["random_sets"]} a row and seed, as many heads in each layer.
{versions}. {seconds:.0f} s a seed, training apart.

{table(results)}
{answers}## Did fine-tuning move the heads?

Effects on the search part, of the base model and of the adapted one.

{shift_table(results)}
## Does the adapter work through them?

Its part in the queries and values of the base model's heads is switched off, at every position;
false premises of the held-out part.

{gain_table(results)}
## Which experts feed them?

First seed, held-out part. Slices of the experts with the largest part in the heads, and the same
experts' slices in other heads of the layers; a positive change means a better answer without it.

{experts_tables(results)}"""


def main(options: Options) -> None:
    """Write the page."""
    text = ABOUT
    if options.results.is_file():
        text += measured(json.loads(options.results.read_text(encoding="utf-8")))
    options.page.write_text(text, encoding="utf-8")
    print(f"wrote {options.page}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
