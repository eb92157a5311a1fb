"""Loading: a model spec, or a transformers model in memory, becomes a hooked model.

The hooked model is the one of the installed TransformerLens (`interp.models.versions`), with
unchanged weights: nothing folded, nothing centred. It is in evaluation mode with frozen parameters.
Its ``tokenizer`` behaves as transformers reads it; TransformerLens would otherwise replace it by
one that begins every text with a BOS token.
"""

import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from interp.arguments import check_choice
from interp.errors import UserError
from interp.models.device_map import (
    DeviceMap,
    MaxMemory,
    check_placing,
    choose_device,
    describe,
)
from interp.models.fingerprint import fingerprint_of_folder, fingerprint_of_model
from interp.models.folder import read_folder
from interp.models.hooked_model import HookedModel
from interp.models.joint_projections import dequantize_joint
from interp.models.model_check import (
    ModelCheck,
    check_of,
    check_path,
    keep_check,
    read_check,
    write_check,
)
from interp.models.placement import input_device, is_dispatched
from interp.models.quantization import (
    Quantization,
    quantization_config,
    quantization_name,
    quantized_fingerprint,
)
from interp.models.quiet import quiet_libraries
from interp.models.self_check import check_model, trial_logits
from interp.models.spec import EMBEDDED, cache_root, resolve
from interp.models.unwrapped import causal_model_of, check_tokenizer
from interp.models.versions import boot, require_bridge
from interp.precision import plain_dtype

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Hooks see scores and patterns, so TransformerLens always computes these.
_ATTENTIONS = ("eager",)


@dataclass(frozen=True)
class ModelInfo:
    """What a run records about its model, and the sizes the methods need.

    Attributes:
        spec: what the model was asked for by.
        fingerprint: SHA-256 over configuration and weights, see `interp.models.fingerprint`.
        dtype: of the parameters that are not quantized, such as ``"float32"``.
        device: where the model is, such as ``"cpu"``; of a divided model, where its tokens go.
        attn_implementation: which attention code runs; ``"eager"`` in a hooked model.
        allow_pickle: whether pickled weights may be loaded again.
        n_layers: number of blocks.
        n_heads: query heads per layer; one slice of ``hook_z`` each.
        n_kv_heads: key/value heads per layer; `n_heads` of them unless queries share them.
        d_head: width of one head.
        quantization: how the weights were quantized when they were read, such as ``"bnb-4bit"``.
        device_map: the devices by module of a model that is divided over several, or offloaded.
    """

    spec: str
    fingerprint: str
    dtype: str
    device: str
    attn_implementation: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    allow_pickle: bool = False
    quantization: str | None = None
    device_map: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} query heads cannot share {self.n_kv_heads} KV heads")


_INFO: "weakref.WeakKeyDictionary[Any, ModelInfo]" = weakref.WeakKeyDictionary()
_LOADED_WITH: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()
"""What else `load_model` was called with."""


def load_model(
    spec: str | Path = EMBEDDED,
    *,
    device: str | None = None,
    dtype: str = "float32",
    attn_implementation: str = "eager",
    cache_dir: Path | None = None,
    allow_pickle: bool = False,
    check_finite: bool = False,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    quantization: Quantization | None = None,
) -> HookedModel:
    """Load the model that `spec` names (see `interp.models.resolve`) as a hooked model.

    Args:
        device: a torch device; by default a GPU if there is one, else the CPU.
        dtype: float32, bfloat16 or float16.
        allow_pickle: read a directory whose weights are pickle files only, which can run code: for
            a model whose maker you trust.
        check_finite: search every weight for NaN and infinity before anything runs; by default a
            model that gives either is reported, with the weight, when it does.
        device_map: for a model that is larger than one device, in place of `device`: ``"auto"``,
            ``"balanced"`` or ``"sequential"``, by which accelerate divides the layers, or the
            device of every part by module, where ``"disk"`` is one too; see
            `interp.models.device_map`. Results are the same.
        max_memory: how much of the model each device may hold, such as ``{0: "20GiB", "cpu":
            "60GiB"}``; by default what is free.
        quantization: ``"bnb-4bit"``, ``"bnb-8bit"`` (package bitsandbytes), or a quantization
            configuration of transformers.

    Raises:
        UserError: an unknown spec, device, dtype or attention, a directory without a language model
            that can be hooked, weights that are not finite, a device map that names a part twice or
            leaves one out, too little memory in all devices together, or a package that is missing.
    """
    # All before anything is downloaded.
    check_placing(device, device_map, max_memory)
    chosen_device = choose_device(device) if device_map is None else None
    chosen_dtype = DTYPES[check_choice("dtype", dtype, DTYPES)]
    if quantization is not None:
        quantization_config(quantization, dtype=chosen_dtype)
    check_choice("attention implementation", attn_implementation, _ATTENTIONS)
    folder = resolve(spec, cache_dir=cache_dir, allow_pickle=allow_pickle)
    root, name = cache_root(cache_dir), quantization_name(quantization)
    with ThreadPoolExecutor(1) as beside:  # hashing frees the GIL
        hashed = beside.submit(fingerprint_of_folder, folder, cache=root / "fingerprints")
        hf_model, tokenizer = read_folder(
            folder,
            spec=str(spec),
            dtype=chosen_dtype,
            finite=check_finite,
            attn_implementation=attn_implementation,
            device=chosen_device,
            device_map=device_map,
            max_memory=max_memory,
            quantization=quantization,
        )
        digest = quantized_fingerprint(hashed.result(), name)
    where = [input_device(hf_model).type, *(describe(hf_model) or {}).values()]
    kept_at = check_path(root, fingerprint=digest, dtype=dtype, device=" ".join(where))
    check = read_check(kept_at)
    model = from_hf(
        hf_model,
        tokenizer,
        spec=str(spec),
        fingerprint=digest,
        allow_pickle=allow_pickle,
        check=check,
        quantization=name,
    )
    if check is None:
        write_check(kept_at, check_of(model))
    placed = {"device_map": device_map, "max_memory": max_memory, "quantization": quantization}
    _LOADED_WITH[model] = {key: value for key, value in placed.items() if value is not None}
    return model


def from_hf(
    hf_model: Any,
    tokenizer: Any,
    *,
    spec: str = "in-memory",
    fingerprint: str | None = None,
    allow_pickle: bool = False,
    check: ModelCheck | None = None,
    quantization: str | None = None,
) -> HookedModel:
    """Wrap a transformers causal language model in memory; the wrapper takes `hf_model` over.

    Device and dtype are those of `hf_model`, which may be divided over devices by accelerate; its
    attention becomes eager. The model inside
    `DataParallel` or ``torch.compile`` is taken over itself; of a model with an adapter of PEFT, a
    copy with the adapter merged (`interp.models.unwrapped`). The model checks itself against
    transformers (`interp.models.self_check`); a part that fails is refused when it is needed.

    Args:
        fingerprint: computed from the weights unless given.
        allow_pickle: recorded: whether pickled weights may be loaded again from `spec`.
        check: an earlier self-check of the same weights, in place of a new one.
        quantization: recorded: how the weights were quantized; by default what `hf_model` says.

    Raises:
        UserError: anything but a causal language model and its tokenizer, an adapter that cannot be
            merged, or an architecture that TransformerLens cannot hook.
    """
    check_tokenizer(tokenizer)
    hf_model = causal_model_of(hf_model)
    hf_model.eval()
    dequantize_joint(hf_model)
    _use_eager_attention(hf_model)
    expected = trial_logits(hf_model) if check is None else None
    model = wrap(
        hf_model,
        tokenizer,
        spec=spec,
        fingerprint=fingerprint,
        allow_pickle=allow_pickle,
        quantization=quantization,
    )
    keep_check(model, check_model(model, expected) if check is None else check)
    return model


def _use_eager_attention(hf_model: Any) -> None:
    """Make all attention compute its pattern, so that hooks can see it."""
    hf_model.set_attn_implementation("eager")
    for module in hf_model.modules():
        if getattr(module, "_use_sdpa", False):  # Falcon decides when it is made
            module._use_sdpa = False


def wrap(
    hf_model: Any,
    tokenizer: Any,
    *,
    spec: str,
    fingerprint: str | None = None,
    allow_pickle: bool = False,
    quantization: str | None = None,
) -> HookedModel:
    """`from_hf` without the self-check, for callers that go on changing the hooked model."""
    device, dtype = input_device(hf_model), plain_dtype(hf_model)
    if is_dispatched(hf_model):
        require_bridge("a model that is divided over devices or offloaded")
    if quantization is None and getattr(hf_model, "is_quantized", False):
        quantization = quantization_name(getattr(hf_model.config, "quantization_config", None))
    named = hf_model.config.architectures
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        # A model made in memory does not name its own class, and a file may say anything.
        hf_model.config.architectures = [type(hf_model).__name__]
    digest = fingerprint or fingerprint_of_model(hf_model)
    with quiet_libraries():
        model = boot(hf_model.eval(), tokenizer, spec=spec, device=device, dtype=dtype)
    model.eval().requires_grad_(False)
    n_kv_heads = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    if model.cfg.n_heads % n_kv_heads:
        raise UserError(
            f"the configuration of {spec} is wrong: {model.cfg.n_heads} query heads cannot share "
            f"{n_kv_heads} key-value heads, of which there must be a divisor"
        )
    info = ModelInfo(
        spec=spec,
        fingerprint=digest,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        attn_implementation="eager",
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        n_kv_heads=n_kv_heads,
        d_head=model.cfg.d_head,
        allow_pickle=allow_pickle,
        quantization=quantization,
        device_map=describe(hf_model),
    )
    keep_info(model, info)
    return model


def keep_info(model: Any, info: ModelInfo) -> None:
    """Remember what is recorded of a model."""
    _INFO[model] = info


def model_info(model: HookedModel) -> ModelInfo:
    """What is recorded of a model of `load_model` or `from_hf`. Raises UserError for any other."""
    try:
        return _INFO[model]
    except (KeyError, TypeError):
        raise UserError(
            "this model was not made by interp.load_model or interp.models.from_hf: "
            "wrap it with interp.models.from_hf(hf_model, tokenizer)"
        ) from None


def loader_of(
    model: HookedModel, *, device: str | None = None, dtype: str | None = None
) -> "partial[HookedModel]":
    """A function that loads a model of `load_model` again, by its spec; it can be pickled.

    `device` and `dtype` are the model's own unless given, and so is the way in which it is divided
    and quantized; conversions are kept in the usual cache. It raises what `load_model` does, and
    also for a model that was made in memory.
    """
    info, more = model_info(model), _LOADED_WITH.get(model, {})
    if "device_map" not in more:
        more = {**more, "device": device or info.device}
    return partial(
        load_model, info.spec, dtype=dtype or info.dtype, allow_pickle=info.allow_pickle, **more
    )


def fingerprint(model: HookedModel) -> str:
    """The fingerprint, as hex, of a model from `load_model` or `from_hf`."""
    return model_info(model).fingerprint
