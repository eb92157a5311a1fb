"""Write docs/results.md, the README's table and its figure from what was measured.

    python benchmarks/faith_table.py        # first: benchmarks/results/faith_table.json
    interp demo                             # and a run, for the figure
    python benchmarks/results_page.py --run runs/demo

The figure needs the extra `export` (kaleido) and a Chromium.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faith_table
import pandas as pd
import tyro
from marked import write_between

from interp.figures.evaluation import gain_cost_curve, head_heatmap

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Options:
    """Where the measurements are."""

    results: Path = faith_table.RESULTS
    run: Path | None = None
    """A run directory whose heat map becomes the README's figure."""


def settings_table(results: dict[str, Any]) -> str:
    """The gain-against-cost table of the first seed's search part."""
    lines = ["| site | mode | heads | gain | cost |\n|---|---|---|---|---|\n"]
    for row in results["once"].get("settings", []):
        gain = f"{row['gain']:.2f} [{row['gain_low']:.2f}, {row['gain_high']:.2f}]"
        cost = f"{row['cost']:.2f} [{row['cost_low']:.2f}, {row['cost_high']:.2f}]"
        lines.append(f"| {row['site']} | {row['mode']} | {row['n_heads']} | {gain} | {cost} |\n")
    return "".join(lines)


def templates_table(results: dict[str, Any]) -> str:
    """Preference accuracy per held-out template, mean over seeds."""
    lines = ["| template | setting | no constraint | constrained |\n|---|---|---|---|\n"]
    for setting in faith_table.SETTINGS:
        splits = [seed[setting.key]["splits"]["held_out"] for seed in results["seeds"]]
        for name in splits[0]["templates"]:
            means = []
            for run in ("baseline", "constrained"):
                found = [one["templates"][name]["false_premise"][run] for one in splits]
                values = [measure["preference_accuracy"][0] for measure in found]
                means.append(f"{sum(values) / len(values):.2f}")
            lines.append(f"| {name} | {setting.key} | {' | '.join(means)} |\n")
    return "".join(lines)


def page(results: dict[str, Any]) -> str:
    """The text of docs/results.md."""
    first, options = results["seeds"][0], results["options"]
    once = results["once"]
    agreement = once.get("path_agreement", {})
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"""# Results

Made by `benchmarks/faith_table.py` and `benchmarks/results_page.py`; the numbers are in
`benchmarks/results/faith_table.json`, with every interval. {options["model"]}, relation
{options["premises"]}, the first {options["limit"]} facts, of which the model knows
{results["known"]} (strict check). Half of the subjects and two templates are searched; the scores
are of the other half ({first["n_subjects"]} subjects) in the other two templates. Means over
{len(results["seeds"])} seeds, with the range of the gain over seeds. Random sets:
{options["random_sets"]} a setting, as many heads in each layer, the chosen heads excluded.
{versions}. {results["seconds"]:.0f} s on two cores, at most {results["peak_gib"]:.1f} GiB.

{faith_table.markdown(results)}
## By held-out template

{templates_table(results)}
## Gain against cost

On the search part of the first seed, where the setting is chosen. Gain: rise of preference accuracy
on false premises; cost: fall of P(true object) on true-premise twins. 95 % intervals over subjects.

{settings_table(results)}
Replacing the heads' outputs by their *mean* over false objects changes next to nothing: what
matters in them is common to all false objects, not which one it is. At three heads, turning the
outputs round (`scale -1`) or cutting attention gains about as much, and zeroing the outputs, which
is the paper's constraint, less, for less cost. Eight zeroed outputs gain more than three cut heads
and cost less; which of the two is better therefore depends on how many heads one allows.

## Checks

- Attribution (values from the masked run) against exact path patching on
  {options.get("path_prompts", 8)} search prompts: Spearman correlation
  {agreement.get("spearman", float("nan")):.2f} over {agreement.get("n", 0)} heads, overlap of the
  top ten {agreement.get("top_k_overlap", float("nan")):.1f}. Path patching took
  {once.get("path_seconds", float("nan")):.0f} s, attribution of both sites
  {first["output_search_seconds"] + first["attention_search_seconds"]:.0f} s on all.
- The paper's search with no false premise at all (both runs the true question): largest effect
  {once.get("control_largest", float("nan")):.1e} logits, {once.get("control_selected", "–")}
  heads at FDR 5 %. A model with random weights: no heads at FDR 5 % (`tests/test_end_to_end.py`).

## Limits

- One small model and one relation. The embedded model knows few films, prizes and headquarters.
- The constraint is told which words are false. Applied to honest questions as well, it costs
  P(true object) as the table says, although the preference stays.
- Without a detector that cost cannot be had for nothing: the same heads read true
  and false objects.
- Greedy answers that *name* the true object are not always right in the rest of what they say.
"""


def main(options: Options) -> None:
    """Write the page, the table in the README, and the figures."""
    results = json.loads(options.results.read_text(encoding="utf-8"))
    (ROOT / "docs" / "results.md").write_text(page(results), encoding="utf-8")
    section = (
        "## What comes out\n\nOn subjects and templates that the search never saw; share of "
        "false-premise prompts on\nwhich the model prefers the true object, mean of "
        f"{len(results['seeds'])} seeds ([docs/results.md](docs/results.md)):\n\n"
        f"{faith_table.markdown(results)}"
    )
    write_between(ROOT / "README.md", "results", section)
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    if options.run is not None:
        heads = pd.read_csv(options.run / "heads.csv")
        figure = head_heatmap(heads, site="attention", title="Effect of cutting each head")
        figure.write_image(images / "heads.png", scale=2)
    if "settings" in results["once"]:
        settings = pd.DataFrame(results["once"]["settings"]).assign(chosen=False)
        gain_cost_curve(settings).write_image(images / "gain_cost.png", scale=2)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
