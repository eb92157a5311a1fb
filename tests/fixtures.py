"""Fixtures for the whole suite: tiny random models made offline, and the embedded real one."""

import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.type_checks import begin_test  # before anything of the packages

# isort: split
import hypothesis
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

import interp.models
from interp.commands.locate import LocateSettings, locate_run
from interp.models import HookedModel
from interp.models.versions import MAJOR
from interp.premises import Fact, Premises, Relation, Template
from tests.devices import DEVICE, device_there, nothing_for_absent_devices, on_device, skip_cpu_bits

# A busy machine is no fault of the code under test.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|start|>system\nYou answer questions.<|end|>\n{% endif %}"
    "<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

CORPUS = [
    "Why is Paris the capital of Germany? Berlin is the capital of Germany.",
    "According to my knowledge, Paris is the capital of France.",
    "What is the population of Madrid, the capital of Spain?",
    "Question: When did Rome become the capital of Italy? Answer: In the year 1871.",
    "Which country is Tokyo the capital of? Tokyo is the capital of Japan.",
    "You answer questions. system user assistant",
]


BRIDGE_FIXTURES = frozenset({"experts_model", "with_experts"})
"""Fixtures that need the bridge, so that every test that asks for one of them does."""


LONG_FILES = frozenset(
    f"test_{name}.py"
    for name in (
        *("end_to_end", "ray_engine", "dtype_check", "training_run", "locate", "architectures"),
        *("new_process", "network", "site", "sizes", "components", "devices", "analyze", "fuzz"),
        *("determinism", "prompting", "sweep", "patch", "placement", "plain", "adapters", "edges"),
    )
)
"""Begun first, so that no process is left with one of them at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that are about the other TransformerLens version; pytest counts them."""
    if MAJOR >= 4:
        out = [item for item in items if item.get_closest_marker("hooked_transformer_only")]
    else:
        out = [
            item
            for item in items
            if item.get_closest_marker("bridge_only")
            or BRIDGE_FIXTURES & set(getattr(item, "fixturenames", ()))
        ]
    left_out = set(out)
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
    skip_cpu_bits(items)
    config.hook.pytest_deselected(items=out)
    # Libraries and tests are there to the end: half a million objects that no collection need see.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, *gc.get_threshold()[1:])


@pytest.fixture(scope="session", autouse=True)
def _device() -> Iterator[None]:
    with device_there(), nothing_for_absent_devices():
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    begin_test()
    set_seed(0)


def make_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with offsets, trained on the spot; any text can be encoded."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_hf_model(
    family: str, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **config: Any
) -> Any:
    """A tiny random transformers model, "llama" (4 heads, 2 KV heads) or "gpt2" (4 heads).

    The weights are larger than a trained model's initial ones, so that heads have visible effects.
    """
    torch.manual_seed(seed)
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "llama":
        sizes: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
        }
        return on_device(LlamaForCausalLM(LlamaConfig(**(tokens | sizes | config))).eval())
    if family == "gpt2":
        sizes = {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 512,
            "initializer_range": 0.2,
        }
        return on_device(GPT2LMHeadModel(GPT2Config(**(tokens | sizes | config))).eval())
    raise ValueError(f"unknown family {family!r}: choose llama or gpt2")


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(chat=True)


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(chat=False)


@pytest.fixture(scope="session")
def hf_factory() -> Callable[..., Any]:
    """``hf_factory(family, tokenizer, *, seed=0, **config)``: a tiny transformers model."""
    return make_hf_model


@pytest.fixture(scope="session")
def transformers_twin(
    chat_tokenizer: PreTrainedTokenizerFast, plain_tokenizer: PreTrainedTokenizerFast
) -> Callable[[str], Any]:
    """By the name of a fixture: a transformers model with the weights of that hooked one."""
    twins = {
        "tiny_llama": make_hf_model("llama", chat_tokenizer, attn_implementation="eager"),
        "tiny_gpt2": make_hf_model("gpt2", plain_tokenizer, attn_implementation="eager"),
    }
    return twins.__getitem__


@pytest.fixture(scope="session")
def tiny_llama(chat_tokenizer: PreTrainedTokenizerFast) -> HookedModel:
    """3 layers, 4 query heads sharing 2 KV heads, d_model 32, with a chat template."""
    return interp.models.from_hf(
        make_hf_model("llama", chat_tokenizer), chat_tokenizer, spec="tiny-llama"
    )


@pytest.fixture(scope="session")
def tiny_gpt2(plain_tokenizer: PreTrainedTokenizerFast) -> HookedModel:
    """2 layers, 4 heads, d_model 32, no chat template."""
    return interp.models.from_hf(
        make_hf_model("gpt2", plain_tokenizer), plain_tokenizer, spec="tiny-gpt2"
    )


@pytest.fixture(scope="session")
def smollm() -> HookedModel:
    """The embedded model; if it cannot be had, its tests fail."""
    return interp.models.load_model("smollm2-135m", device=str(DEVICE))


# A planted model: what every head does is known, because it was put there.

N_FACTS = 16
WRITER, READER, KNOWER = (0, 1), (1, 2), (1, 3)
PLANTED_HEADS = {"output": WRITER, "attention": READER}


def planted_relation() -> Relation:
    """city0 is the capital of land0, and so on; every name is one token."""
    return Relation(
        name="planted",
        description="",
        subject_kind="city",
        object_kind="country",
        templates=(
            Template("why", "Why is {subject} the capital of {object}?"),
            Template("first", "{object} has which town as capital, if it is {subject}?"),
            Template("when", "When did {subject} become the capital of {object}?"),
            Template("famous", "What is {subject}, the capital of {object}, famous for?"),
        ),
        search_templates=("why", "first"),
        cloze="{subject} is the capital of",
        direct="Which country is {subject} the capital of?",
        facts=tuple(Fact(f"city{i}", f"land{i}") for i in range(N_FACTS)),
    )


def make_word_tokenizer(relation: Relation) -> PreTrainedTokenizerFast:
    """One token a word, for the words of a relation and of the plain frame."""
    sentences = [*(one.text for one in relation.templates), relation.cloze, relation.direct]
    names = [name for fact in relation.facts for name in (fact.subject, fact.object)]
    text = "\n".join(sentences).replace("{subject}", "").replace("{object}", "")
    pieces = re.findall(r"\w+|[^\w\s]+", f"Question: Answer: . {relation.mask} {text}")
    words = dict.fromkeys(["<pad>", "<unk>", *names, *pieces])
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<pad>"
    )


def identity_norms(hf_model: Any) -> None:
    """Make every RMS norm hand its input on unchanged, to the last bit.

    With eps = 2^40 (see the configs) the mean square of a small input is lost in rounding, and the
    root of eps is taken back by the weight 2^20.
    """
    for name, parameter in hf_model.named_parameters():
        if "norm" in name:
            parameter.fill_(2.0**20)


def make_planted_model(
    tokenizer: PreTrainedTokenizerFast, *, copying: float = 10.0, noise: float = 0.02
) -> HookedModel:
    """The model of `make_planted_hf_model`, hooked."""
    hf_model = make_planted_hf_model(tokenizer, copying=copying, noise=noise)
    return interp.models.from_hf(hf_model, tokenizer, spec="planted")


@torch.no_grad()
def make_planted_hf_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    copying: float = 10.0,
    noise: float = 0.02,
    multiple: int = 2,
) -> Any:
    """Goes along with false premises, through two heads that are known.

    WRITER notes at a country's token which one it is; READER copies that note to every later
    position, as a logit of strength ``copying``; KNOWER looks at the city and adds 6 to the logit
    of its true country. All other heads and the MLPs are noise. A country's token ends an answer.
    Every width is a multiple of ``multiple``.
    """
    n, n_words = N_FACTS, len(tokenizer)
    d_head = N_FACTS + 4 + -(N_FACTS + 4) % multiple
    note, out = n_words, n_words + n
    one, is_country, is_city = out + n, out + n + 1, out + n + 2
    torch.manual_seed(0)
    hf_model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=n_words,
            hidden_size=is_city + 1 + -(is_city + 1) % multiple,
            intermediate_size=8 + -8 % multiple,
            num_hidden_layers=3,
            num_attention_heads=4,
            head_dim=d_head,
            max_position_embeddings=128,
            rms_norm_eps=2.0**40,
            rope_parameters={"rope_type": "default", "rope_theta": 1e30},
            initializer_range=noise,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    ).eval()
    identity_norms(hf_model)
    cities = tokenizer.convert_tokens_to_ids([f"city{i}" for i in range(n)])
    countries = tokenizer.convert_tokens_to_ids([f"land{i}" for i in range(n)])
    embedding = hf_model.model.embed_tokens.weight.zero_()
    embedding[:, :n_words] = torch.eye(n_words)
    embedding[:, one] = 1
    embedding[countries, is_country] = 1
    embedding[cities, is_city] = 1
    unembedding = hf_model.lm_head.weight.zero_()
    unembedding[countries, torch.arange(out, out + n)] = 1
    unembedding[0, is_country] = 40  # an answer ends with the country

    def plant(
        head: tuple[int, int], asks: int, look_at: int, values: Any, write: int, size: float
    ) -> None:
        attention = hf_model.model.layers[head[0]].self_attn
        rows = slice(head[1] * d_head, (head[1] + 1) * d_head)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            part.weight[rows] = 0
        attention.o_proj.weight[:, rows] = 0
        # The slowest pair of the rotary embedding does not turn at this theta: no positions.
        still = rows.start + d_head // 2 - 1
        attention.q_proj.weight[still, asks] = 6.0
        attention.k_proj.weight[still, look_at] = 6.0
        for index, value in enumerate(values):
            attention.v_proj.weight[rows.start + index, value] = 1
            attention.o_proj.weight[write + index, rows.start + index] = size

    plant(WRITER, is_country, is_country, countries, note, 1.0)
    plant(READER, one, is_country, range(note, note + n), out, copying)
    plant(KNOWER, one, is_city, cities, out, 6.0)
    return on_device(hf_model)


@pytest.fixture(scope="session")
def planted_premises() -> Premises:
    relation = planted_relation()
    return Premises(relation, relation.facts, relation.template_names)


@pytest.fixture(scope="session")
def word_tokenizer(planted_premises: Premises) -> PreTrainedTokenizerFast:
    return make_word_tokenizer(planted_premises.relation)


@pytest.fixture(scope="session")
def planted(word_tokenizer: PreTrainedTokenizerFast) -> HookedModel:
    """Knows its facts, and says the false object when a question presupposes it."""
    return make_planted_model(word_tokenizer)


@pytest.fixture(scope="session")
def honest(word_tokenizer: PreTrainedTokenizerFast) -> HookedModel:
    """The negative control: the same model, but no head copies the false object."""
    return make_planted_model(word_tokenizer, copying=0.0)


@pytest.fixture(scope="session")
def planted_heads() -> dict[str, tuple[int, int]]:
    """The one head that matters at each site."""
    return dict(PLANTED_HEADS)


@pytest.fixture(scope="session")
def planted_run(planted: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``interp locate`` on the planted model, with its facts; to be read only."""
    folder = tmp_path_factory.mktemp("planted")
    relation = planted_relation()
    facts = "".join(f"{fact.subject},{fact.object}\n" for fact in relation.facts)
    (folder / "planted.csv").write_text(f"subject,object\n{facts}", encoding="utf-8")
    description = {
        "name": relation.name,
        "description": "Made up.",
        "subject_kind": relation.subject_kind,
        "object_kind": relation.object_kind,
        "templates": {one.name: one.text for one in relation.templates},
        "search_templates": list(relation.search_templates),
        "cloze": relation.cloze,
        "direct": relation.direct,
    }
    (folder / "planted.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    settings = LocateSettings(premises=str(folder / "planted.csv"), method="activation")
    locate_run(planted, settings, folder / "run", progress=False)
    return folder / "run"
