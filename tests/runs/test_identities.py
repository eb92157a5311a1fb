"""What a shard belongs to: change anything that decides its values, and it is another shard."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interp.runs.shards as shards_module
from interp.errors import UserError
from interp.evaluation.jobs import (
    AnswersJob,
    PreferenceJob,
    WholeRunsJob,
    preference_values,
    whole_run_values,
)
from interp.experts.effects.jobs import ExpertJob
from interp.heads.headset import HeadSet
from interp.heads.locate import as_encoded
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.jobs import OutputSpec
from interp.models import HookedModel, from_hf, load
from interp.moelora.data.encoding import EncodedExample
from interp.moelora.projections import AdaptedProjection
from interp.premises import Premises
from interp.runs.identity import conditions, conditions_digest, model_identity
from interp.runs.job_runner import StoredJobRunner
from interp.runs.shards import InProcess, ShardStore, digest_of
from tests.fixtures import make_planted_hf_model

NONE = HeadSet(())
MEAN = torch.arange(12.0).reshape(3, 2, 2)
SHIFTED = MEAN + 1e-6


@pytest.fixture(scope="module")
def encoded(planted: HookedModel, planted_premises: Premises) -> Any:
    return as_encoded(planted, planted_premises).take(range(6))


def with_item(encoded: Any, kind: str, **changes: Any) -> Any:
    """The premises with one prompt's tokens, objects or answers changed."""
    first = encoded.items[0]
    if kind == "answers":
        changed = replace(first, **changes)
    else:
        changed = replace(first, **{kind: replace(getattr(first, kind), **changes)})
    return replace(encoded, items=(changed, *encoded.items[1:]))


def test_preferences(encoded: Any) -> None:
    job = PreferenceJob(encoded, "false", Constraint(NONE), (NONE, HeadSet(((0, 1),))), MEAN)
    first = encoded.items[0]
    tokens = (*first.false.tokens[:-1], first.false.tokens[-1] + 1)
    start, end = first.false.object
    others = [
        replace(job, kind="twin"),
        replace(job, sets=job.sets[:1]),
        replace(job, sets=(NONE, HeadSet(((1, 0),)))),
        replace(job, constraint=Constraint(NONE, "resample")),
        replace(job, constraint=Constraint(NONE, "scale", 0.5)),
        replace(job, constraint=Constraint(HeadSet((), "attention"))),
        replace(job, mean=None),
        replace(job, mean=SHIFTED),
        replace(job, budget=2**20),
        job.take(range(5)),
        replace(job, encoded=with_item(encoded, "false", tokens=tokens)),
        replace(job, encoded=with_item(encoded, "masked", tokens=tokens)),
        replace(job, encoded=with_item(encoded, "false", object=(start - 1, end))),
        replace(job, encoded=with_item(encoded, "answers", true_token=first.true_token + 1)),
        replace(job, encoded=with_item(encoded, "answers", false_token=first.false_token + 1)),
    ]
    all_differ(job, others)
    assert digest_of(job.identity()) == digest_of(replace(job, prompts_per_shard=3).identity())


def test_whole_runs(encoded: Any) -> None:
    one = Intervention.of([(0, 1)], site="output")
    job = WholeRunsJob(encoded, "false", (Intervention(), one), MEAN)
    all_differ(
        job,
        [
            replace(job, kind="twin"),
            replace(job, interventions=(one,)),
            replace(job, interventions=(one, Intervention())),
            replace(job, interventions=(Intervention(), Intervention.of([(0, 1)], "attention"))),
            replace(job, mean=SHIFTED),
            replace(job, strengths=(0.5,) * len(encoded)),
            replace(job, encoded=replace(encoded, mask="YYYY")),
            job.take(range(5)),
        ],
    )


def test_answers() -> None:
    under = Intervention.of([(0, 1)], site="output")
    job = AnswersJob(((1, 2, 3), (4, 5)), under, ((0, 1), (1, 2)), MEAN, "XXXX", 8)
    all_differ(
        job,
        [
            replace(job, prompts=((1, 2, 3), (4, 6))),
            replace(job, under=None),
            replace(job, under=Intervention.of([(0, 2)], site="output")),
            replace(job, under=Intervention.of([(0, 1)], site="output", mode="mean")),
            replace(job, at=((0, 1), (0, 2))),
            replace(job, mean=SHIFTED),
            replace(job, neutral="YYYY"),
            replace(job, max_new_tokens=9),
            replace(job, strengths=(0.5, 1.0)),
        ],
    )
    assert replace(job, strengths=(0.5, 1.0)).take([1]).strengths == (1.0,)


def test_results_of_versions_without_decoding_steps_and_strengths_are_found_again() -> None:
    """Answers that were kept before are those of all decoding steps, at full strength."""
    under = Intervention.of([(0, 1)], site="attention")
    job = AnswersJob(((1, 2, 3),), under, ((0, 1),))
    known = {"prompts", "under", "at", "mean", "neutral", "max_new_tokens"}
    assert set(job.identity()) == known
    (part,) = job.identity()["under"]["heads"]
    assert set(part) == {"heads", "mode", "factor"}
    ended = Intervention.of([(0, 1)], site="attention", decoding_steps=2)
    all_differ(job, [replace(job, under=ended)])


def test_experts() -> None:
    places = tuple(AdaptedProjection(f"blocks.{i}.attn.q", i, "attn.q", 4, "q") for i in (0, 1))
    examples = (EncodedExample((1, 2, 3, 4), 2), EncodedExample((5, 6, 7), 2))
    job = ExpertJob(examples, places)
    all_differ(
        job,
        [
            job.take([0]),
            replace(job, examples=(EncodedExample((1, 2, 3, 4), 3), examples[1])),
            replace(job, projections=places[:1]),
            replace(job, projections=(places[0], replace(places[1], n_experts=3))),
            replace(job, mode="force"),
            replace(job, mode="scale", factor=0.5),
            replace(job, together=True),
            replace(job, units=frozenset({(0, 1)})),
        ],
    )


def all_differ(job: Any, others: list[Any]) -> None:
    digests = [digest_of(one.identity()) for one in (job, *others)]
    assert len(set(digests)) == len(digests)
    assert digest_of(replace(job).identity()) == digests[0]


def test_versions_are_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = ShardStore(tmp_path, {"a": 1}, 2).digest
    assert ShardStore(tmp_path, {"a": 1}, 2).digest == now
    monkeypatch.setattr(shards_module, "versions", lambda: {"torch": "1.0"})
    assert ShardStore(tmp_path, {"a": 1}, 2).digest != now


def test_a_models_dtype_tokenizer_and_end_tokens_are(word_tokenizer: Any) -> None:
    def made(**changes: Any) -> Any:
        model = make_planted_hf_model(word_tokenizer).to(changes.pop("dtype", torch.float32))
        for name, value in changes.items():
            setattr(model.generation_config, name, value)
        return from_hf(model, word_tokenizer, fingerprint="f" * 64)

    usual = made()
    assert conditions(usual) == conditions(made())
    digests = {
        conditions_digest(one)
        for one in (usual, made(dtype=torch.bfloat16), made(eos_token_id=[0, 1]))
    }
    assert len(digests) == 3
    # Greedy answers take nothing else from the generation config.
    assert conditions(made(repetition_penalty=1.5)) == conditions(usual)
    usual.tokenizer.chat_template = "{{ messages[0].content }}"  # prompts' tokens are in each job
    assert conditions_digest(usual) in digests
    usual.tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    assert conditions_digest(usual) not in digests


@pytest.mark.parametrize(
    "gives", [OutputSpec({"other": 1}), OutputSpec({"values": 2}), OutputSpec(texts=True)]
)
def test_shards_that_the_work_cannot_have_made_are_refused(
    gives: OutputSpec, planted: HookedModel, encoded: Any, tmp_path: Path
) -> None:
    """As if somebody had put others in their place, with the right checksums."""
    job = PreferenceJob(encoded, "false", Constraint(NONE), (NONE,), prompts_per_shard=4)
    stages = StoredJobRunner(tmp_path, InProcess(planted), conditions(planted))
    with pytest.raises(UserError, match=r"are not of this sweep \(.*\): remove them") as caught:
        stages.run(preference_values, planted, job, description="", output=gives, progress=False)
    assert "\n" not in str(caught.value)


def test_whole_runs_are_kept_like_sweeps(
    planted: HookedModel, encoded: Any, tmp_path: Path
) -> None:
    what = (Intervention(), Intervention.of([(0, 1)], site="output"))
    stages = StoredJobRunner(tmp_path, InProcess(planted), conditions(planted))
    gives = OutputSpec({"values": 3})
    job = WholeRunsJob(encoded, "false", what, prompts_per_shard=4)
    kept = stages.run(
        whole_run_values, planted, job, description="", output=gives, progress=False
    ).tensors["values"]
    torch.testing.assert_close(kept, whole_run_values(planted, job).tensors["values"])
    swept = PreferenceJob(encoded, "false", Constraint(NONE), (NONE, HeadSet(((0, 1),))))
    torch.testing.assert_close(
        kept, preference_values(planted, swept).tensors["values"], atol=1e-4, rtol=0
    )
    assert len(list(tmp_path.iterdir())) == 2
    again = StoredJobRunner(tmp_path, InProcess(planted), conditions(planted))
    again.run(preference_values, planted, swept, description="", output=gives, progress=False)
    assert len(list(tmp_path.iterdir())) == 3
    again.remove_others()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in again.used}


def test_models_without_a_quantization_keep_the_digests_of_earlier_runs(
    tiny_llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"fingerprint", "dtype", "tokenizer_sha256", "chat_template_sha256"}
    assert model_identity(tiny_llama).keys() == names
    quantized = replace(load._INFO[tiny_llama], quantization="bnb-4bit")
    monkeypatch.setitem(load._INFO, tiny_llama, quantized)
    assert model_identity(tiny_llama).keys() == names | {"quantization"}
