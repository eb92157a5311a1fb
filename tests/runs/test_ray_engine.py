"""Two Ray workers give the bytes of one process, also when one of them is killed half-way."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from interp.cli import main
from interp.commands.analyze import analyze_adapter
from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import LocateSettings, load_run, locate_run
from interp.commands.patch import PatchSettings, patch_run
from interp.errors import UserError
from interp.models import HookedModel, load_model
from interp.runs.engines import check_engine, gpus_of_worker, opened_engine, placed_as_here
from interp.runs.ray_engine import RayEngine, check_machines, import_ray, room
from tests.fixtures import make_planted_hf_model
from tests.runs.analysis import ROUTED, SWITCHED, quick_analysis
from tests.runs.conftest import write_pairs
from tests.runs.killing import write_premises
from tests.runs.stopping import Stopping

# What Ray itself leaves open or is going to change.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")

SETTINGS = EvaluateSettings(heads=1.0, random_sets=20, counts=(1,), answers="best", mode="zero")


@pytest.fixture(scope="module")
def folder(word_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted model and its facts as files."""
    folder = tmp_path_factory.mktemp("ray")
    make_planted_hf_model(word_tokenizer).save_pretrained(folder / "model")
    word_tokenizer.save_pretrained(folder / "model")
    write_premises(folder)
    write_pairs(folder / "pairs.jsonl")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> HookedModel:
    return load_model(folder / "model", device="cpu")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running cluster, for the tests that need not start their own: that takes ten seconds."""
    import_ray()  # with its workers' priority
    from ray.cluster_utils import Cluster

    # Ray imports jsonschema, which where it finds this package makes a parser of its grammar: a
    # third of the time that a worker takes to start.
    without = tmp_path_factory.mktemp("packages")
    (without / "rfc3987_syntax.py").write_text("raise ImportError", encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(without), os.environ.get("PYTHONPATH"))))
    with pytest.MonkeyPatch.context() as environment:  # workers have that of the cluster
        environment.setenv("FAITHLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        environment.setenv("PYTHONPATH", path)
        cluster = Cluster(
            initialize_head=True,
            # Two GPUs by name only: Ray hands them out as it does real ones.
            head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False},
        )
    assert cluster.address
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two workers of one thread each, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(model: Any, folder: Path, run: Path, engine: Any) -> dict[str, str]:
    """A search, its evaluation with answers, and patching; the hashes of their files."""
    settings = LocateSettings(
        premises=str(folder / "planted.csv"), method="activation", site="output", shard=2
    )
    locate_run(model, settings, run, engine=engine, progress=False)
    _, split, effects = load_run(run)
    evaluate_run(model, split, effects, settings=SETTINGS, run=run, engine=engine, progress=False)
    pairs = PatchSettings(pairs=str(folder / "pairs.jsonl"), shard=3)
    patch_run(model, pairs, run / "patch", engine=engine, progress=False)
    names = [
        *("effects.safetensors", "heads.csv", "settings.csv", "null.csv", "evaluation.json"),
        *("generations.jsonl", "patch/effects.safetensors", "patch/units.csv"),
    ]
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}


def ended(processes: Iterable[int], *, seconds: float = 60.0) -> bool:
    """Whether all of these processes are gone, or are by then."""
    until = time.monotonic() + seconds
    while any(psutil.pid_exists(one) for one in processes):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(scope="module")
def here(model: HookedModel, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The hashes that one process gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    hashes = made(model, folder, tmp_path_factory.mktemp("here") / "run", None)
    torch.set_num_threads(before)
    return hashes


@pytest.mark.usefixtures("one_thread")
def test_two_workers_and_one_killed_give_the_bytes_of_one_process(
    model: HookedModel, folder: Path, here: dict[str, str], address: str, tmp_path: Path
) -> None:
    with opened_engine("ray", model, address=address) as engine:  # they fill the cluster
        assert isinstance(engine, RayEngine)
        before = engine.processes()
        assert len(set(before)) == 2
        assert os.getpid() not in before
        killed: list[int] = []

        def kill_one(inner: Any) -> None:
            killed.append(inner.processes()[0])
            os.kill(killed[0], signal.SIGKILL)

        killing = Stopping(engine, 2, kill_one)
        assert made(model, folder, tmp_path / "killed", killing) == here
        assert killed[0] in before
        after = engine.processes()
        assert killed[0] not in after
        assert len(set(after)) == 2
    assert ended(after)  # with the context


@pytest.mark.usefixtures("one_thread")
def test_a_worker_with_another_model_is_refused(
    model: HookedModel, folder: Path, address: str, tmp_path: Path
) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    changing = load_model(tmp_path / "model", device="cpu")
    hf_model = make_planted_hf_model(model.tokenizer, copying=0.0)
    hf_model.save_pretrained(tmp_path / "model")
    settings = LocateSettings(premises=str(folder / "planted.csv"))
    with (
        opened_engine("ray", changing, address=address, workers=1) as engine,
        pytest.raises(UserError, match="a worker found another model") as caught,
    ):
        locate_run(changing, settings, tmp_path / "run", engine=engine, progress=False)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.usefixtures("one_thread", "capsys")
def test_a_search_by_command_uses_a_running_cluster_and_pickled_weights_where_that_was_said(
    folder: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAITHLENS_CACHE", str(tmp_path / "cache"))
    shutil.copytree(folder / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    torch.save(weights, tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    words = ["--premises", str(folder / "planted.csv"), "--device", "cpu"]
    words += ["--model", str(tmp_path / "model"), "--allow-pickle"]
    ray = ["--engine", "ray", "--address", address, "--workers", "1"]
    for name, more in (("here", []), ("ray", ray)):
        main(["locate", *words, "--out", str(tmp_path / name), *more])
    for file in ("effects.safetensors", "heads.csv"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "ray" / file).read_bytes()
    manifest = json.loads((tmp_path / "ray" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["allow_pickle"] is True


@pytest.mark.bridge_only  # the effects of experts
@pytest.mark.usefixtures("one_thread")
def test_an_analysis_of_experts_uses_a_running_cluster(
    adapter_files: Path, address: str, tmp_path: Path
) -> None:
    settings = quick_analysis(adapter_files, limit=20, effects=20)
    for name, more in (("here", {}), ("ray", {"engine": "ray", "workers": 1, "address": address})):
        analyze_adapter(adapter_files / "run", settings, tmp_path / name, progress=False, **more)
        assert (tmp_path / name / "effects.csv").is_file()
    for file in (*ROUTED, *SWITCHED):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "ray" / file).read_bytes()


def test_an_analysis_by_tokens_needs_one_process(adapter_files: Path, tmp_path: Path) -> None:
    settings = quick_analysis(adapter_files, tokens=True)
    with pytest.raises(UserError, match="leave --tokens or --engine out"):
        analyze_adapter(
            adapter_files / "run", settings, tmp_path / "no", engine="ray", progress=False
        )


def test_without_ray_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("interp.runs.ray_engine.importlib.import_module", missing)
    with pytest.raises(SystemExit) as stop:
        main(["locate", "--engine", "ray", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err == "error: --engine ray needs Ray: pip install 'faithlens[ray]'\n"
    )
    check_engine("local")
    with pytest.raises(UserError, match="unknown engine 'dask'; known: local, ray"):
        check_engine("dask")


def test_a_cluster_that_is_not_there_is_told(model: HookedModel) -> None:
    with (
        opened_engine("ray", model, address="127.0.0.1:1") as engine,
        pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:1") as caught,
    ):
        list(engine.run(print, [(0, None)]))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="workers is 0"), opened_engine("ray", model, workers=0):
        pass


def test_workers_fill_a_cluster() -> None:
    assert room([{"CPU": 8.0}], 2, 0) == 4
    assert room([{"CPU": 8.0, "GPU": 2.0}], 2, 1) == 2
    assert room([{"CPU": 1.0}], 2, 0) == 1
    machines = [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 8.0}]
    assert room(machines, 1, 2) == 3  # one GPU of the first machine is left over
    check_machines(machines, 4)
    with pytest.raises(UserError, match=r"takes 5 GPUs of one machine, and no machine .* than 4"):
        check_machines(machines, 5)


DIVIDED = {"model.embed_tokens": "cuda:0", "model.layers.0": "cuda:1", "lm_head": "disk"}


@pytest.mark.parametrize(
    ("device", "placed", "given", "gpus"),
    [
        *(("cpu", None, None, 0), ("cuda", None, None, 1), ("cuda:0", None, 1, 1)),
        *(("cuda:0", DIVIDED, None, 2), ("cuda:0", DIVIDED, 4, 4)),
        ("cpu", {"a": "cpu", "b": "disk"}, None, 0),
    ],
)
def test_a_worker_has_the_gpus_that_its_model_is_on(
    device: str, placed: dict[str, str] | None, given: int | None, gpus: int
) -> None:
    assert gpus_of_worker(device, placed, given) == gpus


@pytest.mark.parametrize(
    ("device", "placed", "given", "message"),
    [
        ("cuda:0", DIVIDED, 1, "names cuda:1, which a worker with 1 GPU does not have"),
        ("cuda:0", None, 2, "without --device-map a model is on one GPU"),
        ("cpu", None, 1, "is for a model on GPUs"),
        ("cuda:1", None, None, "give --device cuda, not cuda:1"),
    ],
)
def test_gpus_that_a_worker_cannot_use(
    device: str, placed: dict[str, str] | None, given: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        gpus_of_worker(device, placed, given)
    assert "\n" not in str(caught.value)


def test_gpus_are_for_ray() -> None:
    with pytest.raises(UserError, match="--gpus-per-worker is for --engine ray"):
        check_engine("local", 2)
    with pytest.raises(UserError, match="gpus_per_worker"):
        check_engine("ray", 0)


@pytest.mark.usefixtures("one_thread")
def test_workers_see_their_own_gpus_only(address: str) -> None:
    def engine(gpus: int, workers: int | None = None) -> RayEngine:
        options: dict[str, Any] = {"address": address, "gpus": gpus, "workers": workers}
        return RayEngine(dict, identify=str, expected="{}", **options)

    with engine(1) as single:
        assert sorted(map(str, single.visible_gpus())) == ["0", "1"]
    with engine(2) as together:
        assert together.visible_gpus() in (["0,1"], ["1,0"])
    with (
        engine(3) as too_many,
        pytest.raises(UserError, match=r"takes 3 GPUs of one machine, and no machine .* than 2"),
    ):
        too_many.visible_gpus()


@pytest.mark.bridge_only
@pytest.mark.usefixtures("one_thread")
def test_a_divided_model_in_a_worker(folder: Path, address: str, tmp_path: Path) -> None:
    parts = ["embed_tokens", "rotary_emb", "norm", *(f"layers.{layer}" for layer in range(3))]
    placed = {f"model.{name}": "cpu" for name in parts} | {"lm_head": "cpu"}
    divided = load_model(folder / "model", device_map=placed | {"model.layers.1": "disk"})
    pairs = PatchSettings(pairs=str(folder / "pairs.jsonl"), shard=3)
    values = []
    for name, workers in (("local", None), ("ray", 1)):
        with opened_engine(name, divided, address=address, workers=workers) as engine:
            patch_run(divided, pairs, tmp_path / name, engine=engine, progress=False)
        values.append((tmp_path / name / "effects.safetensors").read_bytes())
    assert values[0] == values[1]


def test_a_worker_divides_a_model_as_it_is_divided_here() -> None:
    load = partial(dict, device_map="auto", max_memory={"cpu": 1}, device=None)
    assert placed_as_here(load, "cuda:0", DIVIDED)() == {
        "device_map": DIVIDED,
        "max_memory": None,
        "device": None,
    }
    on_one = placed_as_here(load, "cuda:0", None)()
    assert (on_one["device"], on_one["device_map"]) == ("cuda", None)
    assert placed_as_here(partial(dict, device="cpu"), "cpu", None)() == {"device": "cpu"}


def test_nothing_is_reported_to_anyone(model: HookedModel) -> None:
    with opened_engine("ray", model, workers=1):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
