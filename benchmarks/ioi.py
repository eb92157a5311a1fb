"""Indirect-object identification: which heads write the name, and does the answer need them?

Prompts that the model gets right, in halves with other sentences and other names. On the first
half every head's *direct effect* (path patching to the logits, MLPs frozen) is measured: on the
logit difference (the second mention of the subject turned round), and apart on the logits of the
indirect object IO and of the subject S (all names replaced; against the mean of all names). With
where a head looks from the last position this tells

* a **name mover**: looks at IO, and raises IO's logit;
* a **negative name mover**: looks at IO, and lowers it;
* a **subject suppressor**: looks at S, and lowers S's logit.

On the second half the heads so found take their values from the corrupted run, or a mean, against
random heads of layers nearby. Then the faithfulness curve of a ranking by attribution, and the
stability of the ten largest direct effects.

    python benchmarks/ioi.py

Writes benchmarks/results/ioi.json, and its tables into docs/patching.md.
"""

import json
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import tyro
from marked import write_between

import interp
from interp.files.documents import write_json
from interp.heads import Head, HeadSet
from interp.patching import (
    ActivationEdit,
    PatchEffects,
    patch_paths,
    record_run,
    sweep_sets,
)
from interp.patching.alignment import align
from interp.patching.circuit import circuit_of
from interp.patching.faithfulness import faithfulness_curve
from interp.patching.patch_source import mean_values, patching_edit
from interp.patching.stability import stability
from interp.runs.manifest import versions
from interp.statistics.significance import mean_interval
from interp.tasks import EncodedPairs, answered_right, encode_pairs, ioi_pairs, patch_pairs
from interp.tasks.ioi import NAMES, TEMPLATES, Corruption

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "patching.md"
LOOKS = 0.2
"""Attention from the last position that counts as looking at a name."""
LEAST = 0.5
"""Direct effect on a name's logit that counts as raising or lowering it."""
NEARBY = 2
"""Layers above and below from which random heads are drawn."""
SHOWN = 10


@dataclass(frozen=True)
class Options:
    """Size of the experiment."""

    model: str = "smollm2-135m"
    pairs: int = 64
    """How many pairs are made; those answered wrongly are left out."""
    counts: tuple[int, ...] = (3, 10)
    """How many of the largest positive direct effects are patched together."""
    random_sets: int = 20
    """Random head sets beside each set of heads."""
    random_orders: int = 5
    """Random rankings beside the faithfulness curve."""
    seed: int = 0
    out: Path = ROOT / "benchmarks" / "results" / "ioi.json"
    page: bool = True
    """Write the tables into docs/patching.md."""


@dataclass(frozen=True)
class NameLogit:
    """Logit of one token a prompt, less the mean logit of all names."""

    token: torch.Tensor
    names: torch.Tensor

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        own = logits.gather(1, self.token[:, None])[:, 0]
        return own - logits[:, self.names].mean(dim=1)


@dataclass(frozen=True)
class Half:
    """The same clean prompts, with the subject turned round, and with all names replaced."""

    swap: EncodedPairs
    random: EncodedPairs


def halves(model: Any, options: Options) -> tuple[Half, Half, dict[str, int]]:
    """Prompts answered rightly; no sentence and no pair of names is in both halves."""
    made = [
        encode_pairs(
            model.tokenizer,
            ioi_pairs(
                options.pairs, tokenizer=model.tokenizer, seed=options.seed, corruption=corruption
            ),
        )
        for corruption in get_args(Corruption)
    ]
    swap = made[0]
    assert torch.equal(swap.clean.tokens, made[1].clean.tokens)
    kept = answered_right(model, swap).nonzero()[:, 0].tolist()
    first = set(list(TEMPLATES)[::2])
    search = [i for i in kept if swap.templates[i] in first]
    names = {swap.groups[i] for i in search}
    held_out = [i for i in kept if swap.templates[i] not in first and swap.groups[i] not in names]
    counts = {"pairs": len(swap), "right": len(kept), "search": len(search)}
    counts["held_out"] = len(held_out)
    parts = [Half(*(one.take(part) for one in made)) for part in (search, held_out)]
    return parts[0], parts[1], counts


def direct_effects(model: Any, half: Half, seed: int) -> dict[str, PatchEffects]:
    """Every head's direct effect on the logit difference, and on the logits of IO and S."""
    names = [model.tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in NAMES]
    tokens = torch.tensor([ids[0] for ids in names if len(ids) == 1])
    swap, other = half.swap, half.random
    options = {"groups": swap.groups, "templates": swap.templates, "seed": seed}

    def effect(prompts: EncodedPairs, metric: Any) -> PatchEffects:
        return patch_paths(model, prompts.clean, prompts.corrupted, metric, **options)

    return {
        "difference": effect(swap, swap.metric),
        "io": effect(other, NameLogit(other.answer, tokens)),
        "s": effect(other, NameLogit(other.wrong, tokens)),
    }


def kind_of(row: dict[str, Any]) -> str:
    """What a head is, by its direct effects and by where it looks (see the module's text)."""
    looks = row["attention"]
    if looks["io"] > max(LOOKS, looks["s1"], looks["s2"]) and abs(row["io"][0]) >= LEAST:
        return "name mover" if row["io"][0] > 0 else "negative name mover"
    if looks["s1"] + looks["s2"] > LOOKS and row["s"][0] <= -LEAST:
        return "subject suppressor"
    return ""


def describe(
    effects: dict[str, PatchEffects], looks: dict[str, torch.Tensor]
) -> list[dict[str, Any]]:
    """One row a head, largest direct effect on the logit difference first."""
    rows = []
    for place in effects["difference"].top_k(effects["difference"].values[0].numel()):
        row: dict[str, Any] = {"layer": place[0], "head": place[1]}
        for name, result in effects.items():
            found = result.statistics
            row[name] = [float(part[place]) for part in (found.mean, found.ci_low, found.ci_high)]
        row["q_value"] = float(effects["difference"].statistics.q_value[place])
        row["attention"] = {role: float(values[place]) for role, values in looks.items()}
        row["kind"] = kind_of(row)
        rows.append(row)
    return rows


def drops(
    model: Any, prompts: EncodedPairs, edit: ActivationEdit, sets: Sequence[HeadSet]
) -> torch.Tensor:
    """How far the clean logit difference falls with each set of heads edited, [prompt set]."""
    values = sweep_sets(
        model,
        prompts.clean,
        edit,
        sets=[(), *(tuple(heads) for heads in sets)],
        metrics=[prompts.metric],
    )[0]
    return values[:, :1] - values[:, 1:]


def random_sets(
    model: Any, heads: HeadSet, excluded: set[Head], n_sets: int, seed: int
) -> list[HeadSet]:
    """For each head another one of a layer nearby, none of them excluded."""
    draw, drawn = random.Random(seed), []
    for _ in range(n_sets):
        taken: set[Head] = set()
        for layer, _ in heads:
            near = range(max(0, layer - NEARBY), min(model.cfg.n_layers, layer + NEARBY + 1))
            free = {(at, head) for at in near for head in range(model.cfg.n_heads)}
            taken.add(draw.choice(sorted(free - taken - excluded - set(heads))))
        drawn.append(HeadSet(tuple(sorted(taken))))
    return drawn


def causal_check(
    model: Any, chosen: dict[str, HeadSet], search: Half, held_out: EncodedPairs, options: Options
) -> list[dict[str, Any]]:
    """Fall of the logit difference with chosen heads patched, against random sets of heads.

    The random heads are of nearby layers, and none is a mover or a suppressor itself.
    """
    rows = []
    named = {head for name, heads in chosen.items() if "direct" not in name for head in heads}
    alignment = align(held_out.corrupted, held_out.clean, "all")
    mean = mean_values(model, search.swap.clean, "z")
    clean = clean_metric(model, held_out)
    for source in ("corrupted run", "mean"):
        edit = patching_edit(
            model,
            held_out.corrupted,
            alignment,
            component="z",
            mean=mean if source == "mean" else None,
        )
        for name, heads in chosen.items():
            null = random_sets(model, heads, named, options.random_sets, options.seed)
            fall = drops(model, held_out, edit, [heads, *null])
            null_drop = fall[:, 1:].mean(dim=0)
            rows.append(
                {
                    "source": source,
                    "chosen": name,
                    "heads": list(heads),
                    "drop": mean_interval(fall[:, 0].numpy(), held_out.groups, seed=options.seed),
                    "random": null_drop.tolist(),
                    "turned": float((fall[:, 0] > clean).float().mean()),
                }
            )
    return rows


def clean_metric(model: Any, prompts: EncodedPairs) -> torch.Tensor:
    """The logit difference of the clean prompts, [prompt]."""
    run = record_run(model, prompts.clean, start=prompts.clean.width - 1, keep=())
    return prompts.metric(run.logits).float()


@torch.no_grad()
def attention_to_names(model: Any, prompts: EncodedPairs) -> dict[str, torch.Tensor]:
    """Mean attention of every head from the last position to each name, by role [layer head]."""
    batch = prompts.clean
    run = record_run(model, batch, start=batch.width - 1, keep=("pattern",))
    pattern = run.values["pattern"][:, :, 0]  # [layer prompt head key]
    found = {}
    for role in ("io", "s1", "s2"):
        keys = batch.span_mask(prompts.spans[role][0]).float()
        found[role] = torch.einsum("lphk,pk->lph", pattern, keys).mean(dim=1)
    return found


def measure(model: Any, options: Options) -> dict[str, Any]:
    """The whole experiment."""
    search, held_out, counts = halves(model, options)
    effects = direct_effects(model, search, options.seed)
    rows = describe(effects, attention_to_names(model, search.swap))
    chosen = {
        f"{kind}s": HeadSet(tuple((r["layer"], r["head"]) for r in rows if r["kind"] == kind))
        for kind in ("name mover", "subject suppressor", "negative name mover")
    }
    ranked = [(row["layer"], row["head"]) for row in rows if row["difference"][0] > 0]
    for count in options.counts:
        chosen[f"{count} largest direct effects"] = HeadSet(tuple(ranked[:count]))
    swap = held_out.swap
    total = patch_pairs(model, search.swap, method="attribution", seed=options.seed)
    curve = faithfulness_curve(
        model, swap.clean, swap.corrupted, swap.metric,
        ranking=circuit_of(model, total).ranked(by="absolute"),
        n_random=options.random_orders, groups=swap.groups, seed=options.seed,
    )  # fmt: skip
    stable = stability(effects["difference"], 10)
    clean = clean_metric(model, swap).numpy()
    gap = effects["difference"].clean - effects["difference"].corrupted  # type: ignore[operator]
    used = {name: heads for name, heads in chosen.items() if len(heads)}
    return {
        "counts": counts,
        "clean_logit_difference": mean_interval(clean, swap.groups, seed=options.seed),
        "gap": float(gap.mean()),
        "heads": rows[:SHOWN],
        "kinds": {name: list(heads) for name, heads in chosen.items()},
        "causal": causal_check(model, used, search, swap, options),
        "faithfulness": {
            "ranking": "attribution, absolute",
            "cpr": curve.cpr,
            "cmd": curve.cmd,
            "random_cpr": curve.random_cpr.tolist(),
            "random_cmd": curve.random_cmd.tolist(),
            "curve": curve.to_dataframe().to_dict("records"),
        },
        "stability": {
            "overlap": stable.overlap,
            "chance": stable.chance,
            "between_templates": stable.between_templates,
        },
    }


def interval(values: Sequence[float], digits: int = 2) -> str:
    """A value with its interval, as the tables show it."""
    value, low, high = values
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def tables(results: dict[str, Any]) -> str:
    """The page's tables in Markdown."""
    counts = results["counts"]
    lines = [
        f"Of {counts['pairs']} pairs the model answers {counts['right']} rightly. "
        f"{counts['search']} of them find the heads; clean and corrupted run lie "
        f"{results['gap']:.1f} logits apart there.",
        "",
        "| head | direct effect on the logit difference | on IO's logit | on S's logit | "
        "looks at IO | at S1 | at S2 | kind |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["heads"]:
        looks = " | ".join(f"{row['attention'][role]:.2f}" for role in ("io", "s1", "s2"))
        effects = f"{interval(row['difference'])} | {row['io'][0]:.2f} | {row['s'][0]:.2f}"
        head = f"({row['layer']}, {row['head']})"
        lines.append(f"| {head} | {effects} | {looks} | {row['kind']} |")
    lines += [
        "",
        f"{counts['held_out']} pairs with other sentences and names check them; the clean logit "
        f"difference is {interval(results['clean_logit_difference'])} there.",
        "",
        "| heads patched | number | values from | fall of the logit difference | answers turned "
        "round | random heads of nearby layers: mean | range |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["causal"]:
        null = row["random"]
        lines.append(
            f"| {row['chosen']} | {len(row['heads'])} | {row['source']} | {interval(row['drop'])} "
            f"| {100 * row['turned']:.0f} % | {sum(null) / len(null):.2f} | "
            f"{min(null):.2f} to {max(null):.2f} |"
        )
    faithful, stable = results["faithfulness"], results["stability"]
    random_cpr, random_cmd = faithful["random_cpr"], faithful["random_cmd"]
    lines += [
        "",
        f"All heads ranked by {faithful['ranking']} effect on the first half, run as circuits on "
        f"the second: CPR {interval(faithful['cpr'])}, CMD {interval(faithful['cmd'])}; random "
        f"orders {min(random_cpr):.2f} to {max(random_cpr):.2f} and {min(random_cmd):.2f} to "
        f"{max(random_cmd):.2f}. The ten largest direct effects overlap by "
        f"{interval(stable['overlap'])} across resamples and by "
        f"{interval(stable['between_templates'])} between sentences (Jaccard; chance "
        f"{stable['chance']:.2f}).",
    ]
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measure, write the JSON and the page's tables."""
    begin = time.perf_counter()
    model = interp.load_model(options.model)
    measured = {
        "options": {k: v for k, v in asdict(options).items() if k not in ("out", "page")},
        **measure(model, options),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - begin,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    results: dict[str, Any] = json.loads(json.dumps(measured))
    options.out.parent.mkdir(exist_ok=True)
    write_json(options.out, results)
    text = tables(results)
    print(text)
    if options.page:
        write_between(PAGE, "ioi", text)
    print(f"wrote {options.out}; {results['seconds']:.0f} s, {results['peak_gib']:.1f} GiB")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
