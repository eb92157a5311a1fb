"""`interp.attach` beside `interp.generate`: the same answers? And what does it cost?

    python benchmarks/attach.py [--prompts 200] [--cost] [--out benchmarks/results/attach.json]

Of the embedded model, under the heads that ship with it. The questions are the held-out subjects
and templates of eight relations, false premises and their true twins alternating; of every second
relation the detector finds the false words, in the others they are given. An answer that differs
from the hooked model's is written out in full.

``--cost`` measures instead, in batches of eight: processor time of attached generation over the
plain model's, in interleaved pairs, with the gate closed (no prompt is constrained) and open; the
gate's reading in prefills; and the peak memory of each, in a process of its own. It is kept for
each number of threads (``OMP_NUM_THREADS``) by itself.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import PeakMemory
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import interp
from interp.attached import attach
from interp.attached.anatomy import Anatomy
from interp.attached.plain_model import PlainModel
from interp.heads.shipped import shipped_for
from interp.interventions import detect
from interp.models import render_chat
from interp.premises import load_premises

MODEL = "smollm2-135m"
RELATIONS = (
    *("capitals", "authors", "landmarks", "products"),
    *("languages", "us_cities", "instruments", "myths"),
)
BATCH, COMPARED, NEW_TOKENS = 8, 25, 24
"""Prompts that run together where costs are measured, and where answers are compared."""
RESULTS = Path(__file__).resolve().parent / "results" / "attach.json"
PAIRS = 8


class Asked(NamedTuple):
    """A question, and the words that may be false."""

    relation: str
    kind: str
    text: str
    words: str
    gate: str


def questions(count: int, *, seed: int = 0) -> list[Asked]:
    """The same number of each relation, as far as there are so many."""
    found = []
    for number, name in enumerate(RELATIONS):
        held_out = load_premises(name, seed=seed).split(seed=seed).held_out
        each = count // len(RELATIONS) + (number < count % len(RELATIONS))
        asked = held_out.questions()
        step = max(1, 2 * len(asked) // max(each, 1))
        for row in range(each):
            question = asked[row // 2 * step % len(asked)]
            kind: Any = "twin" if row % 2 else "false"
            filled = held_out.fill(question, kind)
            words = filled.text[slice(*filled.object)]
            found.append(Asked(name, kind, filled.text, words, ("probe", "oracle")[number % 2]))
    return found


class Plain(NamedTuple):
    """The transformers model, and prompts for it."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls) -> "Plain":
        folder = interp.models.resolve(MODEL)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(folder))

    def batch(self, texts: list[str]) -> dict[str, torch.Tensor]:
        prompts = [render_chat(self.tokenizer, text).text for text in texts]
        encoded = self.tokenizer(
            prompts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        return dict(encoded)

    def answers(self, texts: list[str], new_tokens: int) -> list[str]:
        batch = self.batch(texts)
        out = self.model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
        new = out[:, batch["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]


def same_answers(count: int) -> dict[str, Any]:
    """Answers of both, question for question."""
    hooked, plain = interp.load_model(MODEL), Plain.load()
    shipped = shipped_for(hooked)
    assert shipped is not None
    heads, asked = shipped.heads, questions(count)
    different, acted, done = [], 0, 0
    for gate in ("probe", "oracle"):
        of_gate = [each for each in asked if each.gate == gate]
        for begin in range(0, len(of_gate), COMPARED):
            part = of_gate[begin : begin + COMPARED]
            texts, words = [each.text for each in part], [each.words for each in part]
            told = None if gate == "probe" else words
            settings: dict[str, Any] = {"gate": gate, "false_object": told}
            expected = interp.generate(
                hooked, texts, heads=heads, max_new_tokens=NEW_TOKENS, **settings
            )
            with attach(plain.model, plain.tokenizer, heads, **settings):
                found = plain.answers(texts, NEW_TOKENS)
            detected = detect(hooked, texts, progress=False) if told is None else []
            acted += sum(each.fired for each in detected) if told is None else len(part)
            for each, ours, theirs in zip(part, found, expected, strict=True):
                if ours != theirs:
                    different.append({**each._asdict(), "attached": ours, "hooked": theirs})
            done += len(part)
            print(f"{done}/{len(asked)}: {len(different)} differ, {acted} acted on", flush=True)
    return {
        "prompts": len(asked),
        "gate_probe": sum(each.gate == "probe" for each in asked),
        "relations": list(RELATIONS),
        "new_tokens": NEW_TOKENS,
        "acted_on": acted,
        "different": different,
    }


def ratios(first: Callable[[], object], second: Callable[[], object]) -> dict[str, float]:
    """Processor time of the second over that of the first: the median of interleaved pairs."""
    found = []
    for _ in range(PAIRS):
        begin = time.process_time()
        first()
        middle = time.process_time()
        second()
        found.append((time.process_time() - middle) / (middle - begin))
    found.sort()
    return {"median": statistics.median(found), "low": found[0], "high": found[-1]}


def costs() -> dict[str, Any]:
    """Generation with the gate closed and open, the gate itself in prefills, and memory."""
    plain, constrained = Plain.load(), Plain.load()
    heads = _heads(plain)
    found: dict[str, Any] = {"batch": BATCH, "new_tokens": NEW_TOKENS, "pairs": PAIRS}
    asked = _one_relation()
    texts, words = [each.text for each in asked["false"]], [each.words for each in asked["false"]]
    nothing: list[str | None] = [None] * BATCH
    for name, told in (("closed", nothing), ("open", words)):
        with attach(constrained.model, constrained.tokenizer, heads, false_object=told):
            found[name] = ratios(lambda: _fixed(plain, texts), lambda: _fixed(constrained, texts))
        print(name, found[name], flush=True)
    with attach(constrained.model, constrained.tokenizer, heads, gate="probe") as model:
        for kind, part in asked.items():
            batch = constrained.batch([each.text for each in part])
            more = ratios(
                lambda batch=batch: _prefill(plain.model, batch),
                lambda batch=batch: _prefill(model, batch),
            )
            found[f"gate_in_prefills_{kind}"] = {key: more[key] - 1 for key in more}
            print("gate", kind, more, flush=True)
    return {**found, "peak_mib": _peaks()}


def _one_relation() -> dict[str, list[Asked]]:
    asked = [each for each in questions(2 * BATCH * len(RELATIONS)) if each.relation == "capitals"]
    return {kind: [each for each in asked if each.kind == kind] for kind in ("false", "twin")}


def _heads(plain: Plain) -> Any:
    return shipped_for(PlainModel(plain.model, plain.tokenizer, Anatomy.of(plain.model))).heads  # type: ignore[arg-type, union-attr]


def _fixed(plain: Plain, texts: list[str]) -> None:
    """Answers of one length, whatever is said."""
    batch = plain.batch(texts)
    lengths = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    plain.model.generate(**batch, **lengths, do_sample=False)


@torch.no_grad()
def _prefill(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """As ``generate`` runs it."""
    places = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    model(**batch, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _peaks() -> dict[str, float]:
    """The largest resident size of a process that generates, in MiB."""
    context, found = multiprocessing.get_context("spawn"), {}
    for setting in ("plain", "closed", "open", "probe"):
        with context.Pool(1) as pool:
            found[setting] = pool.apply(_peak, (setting,))
        print("peak", setting, round(found[setting]), "MiB", flush=True)
    return found


def _peak(setting: str) -> float:
    torch.set_num_threads(1)
    plain, asked = Plain.load(), _one_relation()["false"]
    heads, words = _heads(plain), [each.words for each in asked]
    options: dict[str, Any] = {"false_object": [None] * BATCH}
    if setting == "probe":
        options = {"gate": "probe"}
    elif setting == "open":
        options = {"false_object": words}
    wrapped = (
        nullcontext()
        if setting == "plain"
        else attach(plain.model, plain.tokenizer, heads, **options)
    )
    with wrapped, PeakMemory() as memory:
        for _ in range(3):
            _fixed(plain, [each.text for each in asked])
    return memory.before / 2**20 + memory.mib


def main() -> None:
    """Measure, and put the figures beside those of the other measurement."""
    parser = argparse.ArgumentParser(description="Attached models: answers and cost.")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    before = json.loads(given.out.read_text()) if given.out.is_file() else {}
    # Processor time depends on the threads: what one waits for another counts.
    name = f"cost_{torch.get_num_threads()}_threads" if given.cost else "equality"
    value = costs() if given.cost else same_answers(given.prompts)
    given.out.write_text(json.dumps({**before, name: value}, indent=1) + "\n")
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
