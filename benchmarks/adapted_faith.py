"""FAITH on an adapted model: a MoELoRA adapter that corrects false premises, its heads and experts.

1. An adapter is trained on the shipped sets arithmetic, facts and false_premise, without the rows
   that name a subject of the evaluation (--adapter RUN takes a run of `interp moelora train`
   instead; facts whose subject its training data name are then left out of the evaluation).
2. For each seed the facts that the base model knows are split by subject and template. Heads are
   found on the search part in the base and in the adapted model, and scored on the held-out part
   in both, with random head sets, true-premise twins and (first seed) greedy answers.
3. Did the heads move, does the adapter's gain go through them, which experts feed them?

    python benchmarks/adapted_faith.py --seeds 0 1
    python benchmarks/adapted_faith_page.py

The same command again goes on where it stopped. Writes benchmarks/results/adapted_faith.json.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

import interp
from interp.commands.train import train_moelora
from interp.errors import UserError
from interp.evaluation import Evaluation, ask_all
from interp.experts.heads import (
    ExpertHeadContribution,
    adapter_gain,
    compare_heads,
    rank_expert_contributions,
    slice_effects,
)
from interp.files.documents import read_json, write_atomically, write_json
from interp.forward.hook_points import count_units
from interp.heads import HeadEffects, HeadSet, Site, locate_heads, random_head_sets
from interp.heads.locate import as_encoded
from interp.moelora import hooked, load_adapter
from interp.moelora.data.sources import load_examples
from interp.moelora.training.pretrained import load_pretrained
from interp.moelora.training.training import TrainingSettings
from interp.premises import Premises, Split
from interp.premises.registry import data_dir
from interp.premises.relation import names_any
from interp.runs.manifest import versions

RESULTS = Path(__file__).parent / "results" / "adapted_faith.json"
SETS = ("arithmetic", "facts", "false_premise")
SETTINGS: tuple[tuple[Site, int], ...] = (("output", 8), ("attention", 3))
"""Sites and head counts; the constraint zeroes outputs, or cuts attention."""
FEWEST_FACTS = 16


@dataclass(frozen=True)
class Options:
    """What is measured."""

    model: str = "smollm2-135m"
    premises: str = "capitals"
    limit: int = 110
    """Facts that are tried, best known first."""
    seeds: tuple[int, ...] = (0, 1)
    """Splits of the facts; the adapter is trained once."""
    steps: int = 120
    """Optimizer steps of the adapter."""
    batch: int = 8
    """Examples of each step."""
    learning_rate: float = 1e-3
    test_limit: int = 40
    """Held-out questions of each task that the adapter answers after training."""
    adapter: Path | None = None
    """A run of `interp moelora train`, instead of training here."""
    random_sets: int = 20
    """Random head sets of every null."""
    answers: bool = True
    """Greedy answers too, for the first seed."""
    slices: int = 6
    """Experts whose part in the heads is taken out, one by one, for the first seed."""
    run: Path = Path("runs/adapted-faith")
    """Where adapter, training data and finished parts are kept."""
    out: Path = RESULTS


def training_data(folder: Path, subjects: tuple[str, ...]) -> dict[str, Any]:
    """The shipped sets without the training rows that name one of the subjects, in any role."""
    counts = {}
    for name in SETS:
        source, target = data_dir() / "tasks" / name, folder / name
        target.mkdir(parents=True, exist_ok=True)
        lines = (source / "train.jsonl").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not _names(json.loads(line), subjects)]
        write_atomically(target / "train.jsonl", "".join(f"{line}\n" for line in kept))
        write_atomically(target / "test.jsonl", (source / "test.jsonl").read_text("utf-8"))
        counts[name] = {"rows": len(lines), "kept": len(kept)}
    return counts


def _names(row: dict[str, Any], subjects: tuple[str, ...]) -> bool:
    return names_any(f"{row['subject']}\n{row['prompt']}\n{row['response']}", subjects)


def unseen(known: Premises, settings: TrainingSettings) -> Premises:
    """The facts whose subject no training example of the adapter names."""
    examples = [one for source in settings.data for one in load_examples(source)]
    text = "\n".join(f"{one.subject}\n{one.prompt}\n{one.response}" for one in examples)
    facts = [fact for fact in known.facts if not names_any(text, [fact.subject])]
    if len(facts) < FEWEST_FACTS:
        raise UserError(
            f"the adapter was trained on all but {len(facts)} of the {len(known.facts)} known "
            f"facts, and {FEWEST_FACTS} are needed: leave --adapter out, so that one is trained "
            "without them"
        )
    return known.with_facts(facts)


def adapter_of(options: Options, known: Premises) -> tuple[Path, TrainingSettings, dict[str, Any]]:
    """The run directory of the adapter, trained now if none was given, and what it was."""
    if options.adapter is not None:
        config = options.adapter / "config.yaml"
        try:
            content: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
            content |= {k: tuple(v) for k, v in content.items() if isinstance(v, list)}
            settings = TrainingSettings(**content)
        except (OSError, TypeError, AttributeError) as error:
            raise UserError(
                f"{options.adapter} is no run of `interp moelora train` ({error}): what the "
                "adapter was trained on must be known"
            ) from error
        return options.adapter, settings, {}
    folder = options.run / "data"
    counts = training_data(folder, known.subjects)
    settings = TrainingSettings(
        model=options.model, data=tuple(str(folder / name) for name in SETS),
        steps=options.steps, batch=options.batch, learning_rate=options.learning_rate,
        test_limit=options.test_limit, save_every=50,
    )  # fmt: skip
    return train_moelora(settings, options.run / "training"), settings, counts


def score(evaluation: Evaluation) -> dict[str, Any]:
    """What is kept of an evaluation: its summary, and per prompt what tables over seeds need."""
    found: dict[str, Any] = {"summary": evaluation.to_dict()}
    for kind, values in (("false", evaluation.false), ("twin", evaluation.twin)):
        found[kind] = {
            "subjects": list(values.subjects),
            "prefers": (values.logit_difference[:, :2] > 0).astype(int).T.tolist(),
            "p_true": values.p_true[:, :2].round(4).T.tolist(),
        }
    return found


def measure_seed(
    models: dict[str, Any], split: Split, seed: int, options: Options
) -> dict[str, Any]:
    """Heads of both models on the search part; constraints and the adapter on the held-out part."""
    first = seed == options.seeds[0]
    found: dict[str, Any] = {"seed": seed, "n_subjects": len(split.held_out.facts)}
    effects: dict[str, dict[Site, HeadEffects]] = {
        name: {
            site: locate_heads(model, split.search, site=site, seed=seed) for site, _ in SETTINGS
        }
        for name, model in models.items()
    }
    asked = {
        name: ask_all(model, split.held_out) if first and options.answers else False
        for name, model in models.items()
    }
    for site, count in SETTINGS:
        key = f"{site} {count}"
        heads = {name: effects[name][site].select(count=count) for name in models}
        rows = (("base", "base"), ("adapted", "base"), ("adapted", "adapted"))
        for name, origin in rows:
            evaluation = interp.evaluate(
                models[name], split.held_out, heads=heads[origin],
                random_sets=options.random_sets, answers=asked[name], seed=seed,
            )  # fmt: skip
            found[f"{key}: {name}, heads of {origin}"] = score(evaluation)
            accuracy = evaluation.false.accuracy
            print(
                f"seed {seed} {key} {name}/{origin}: {accuracy[0]:.2f} → {accuracy[1]:.2f}",
                flush=True,
            )
        shift = compare_heads(effects["base"][site], effects["adapted"][site], seed=seed)
        found[f"{key}: shift"] = shift.to_dict() | {
            "effect_of_base_heads": shift.effect_of(heads["base"]),
            "heads": {name: [list(head) for head in one] for name, one in heads.items()},
            "shared": len(set(heads["base"]) & set(heads["adapted"])),
        }
        gain = adapter_gain(
            models["adapted"], split.held_out, heads["base"],
            random_sets=options.random_sets, seed=seed,
        )  # fmt: skip
        found[f"{key}: gain"] = gain.to_dict()
        if first:
            found[f"{key}: experts"] = measure_experts(
                models["adapted"], split.held_out, heads["base"], options
            )
    return found


def measure_experts(
    model: Any, premises: Premises, heads: HeadSet, options: Options
) -> dict[str, Any]:
    """Which experts feed the heads, and what taking their parts out does, against other heads."""
    feeding = rank_expert_contributions(model, premises, heads)
    slices = feeding.slices(options.slices)
    others = list(dict.fromkeys(other_head(model, one, heads) for one in slices))
    encoded = as_encoded(model, premises)
    effects = slice_effects(
        model, encoded.take(range(0, len(encoded), 2)), [*slices, *others], head_effect=heads.site
    )
    table = effects.to_dataframe()
    table["in"] = ["the heads" if name in {one.name for one in slices} else "other heads"
                   for name in table["slice"]]  # fmt: skip
    records = {"adapter": feeding.adapter, "experts": feeding.experts.head(20), "slices": table}
    return {name: json.loads(one.to_json(orient="records")) for name, one in records.items()}


def other_head(model: Any, one: ExpertHeadContribution, heads: HeadSet) -> ExpertHeadContribution:
    """The same expert's part in a random other head of the layer."""
    n_units = count_units(model, one.component)
    size = model.cfg.n_heads // n_units
    taken = tuple(
        dict.fromkeys((layer, head // size) for layer, head in heads if layer == one.layer)
    )
    (drawn,) = random_head_sets(
        HeadSet(taken), n_layers=model.cfg.n_layers, n_heads=n_units, n_sets=1, seed=one.unit
    )
    unit = next((unit for layer, unit in drawn if layer == one.layer), (one.unit + 1) % n_units)
    return ExpertHeadContribution(one.component, one.layer, unit, one.expert)


def main(options: Options) -> None:
    """Train, measure every seed that is not finished, and write the results."""
    begin = time.perf_counter()
    options.run.mkdir(parents=True, exist_ok=True)
    base = interp.load_model(options.model)
    premises = interp.load_premises(options.premises, limit=options.limit)
    known = interp.filter_known(base, premises)
    trained, settings, counts = adapter_of(options, known)
    facts = unseen(known, settings)
    pretrained = load_pretrained(options.model)
    adapter = load_adapter(pretrained.model, trained / "adapter")
    adapted = hooked(adapter.eval(), pretrained.tokenizer, spec=f"{options.model} with MoELoRA")
    models = {"base": base, "adapted": adapted}
    asked = {k: v for k, v in asdict(options).items() if k not in ("out", "run", "seeds")}
    content: dict[str, Any] = {
        "options": json.loads(json.dumps(asked, default=str)),
        "known": len(known.facts),
        "evaluated": len(facts.facts),
        "still_known": len(interp.filter_known(adapted, facts, minimum=1).facts),
        "training_rows": counts,
        "training": {
            k: v for k, v in read_json(trained / "metrics.json").items() if k != "last_step"
        },
        "versions": versions(),
        "seeds": [],
    }
    for seed in options.seeds:
        path = options.run / f"seed-{seed}.json"
        done = read_json(path) if path.is_file() else {}
        if done.get("options") != content["options"]:
            seeded = interp.load_premises(options.premises, limit=options.limit, seed=seed)
            split = seeded.with_facts(facts.facts).split(seed=seed)
            start = time.perf_counter()
            measured = measure_seed(models, split, seed, options)
            done = {"options": content["options"], "seconds": time.perf_counter() - start,
                    "measured": json.loads(json.dumps(measured))}  # fmt: skip
            write_json(path, done)
        content["seeds"].append(done["measured"] | {"seconds": done["seconds"]})
        content["seconds"] = time.perf_counter() - begin
        options.out.parent.mkdir(exist_ok=True)
        write_json(options.out, content)
    print(f"wrote {options.out}; {content['seconds']:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
