"""In a new Python: two processes train as one, and an adapter gives the same bits.

One Python for both, since its imports take the longest.
"""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from interp.files.documents import read_json

REPOSITORY = Path(__file__).parents[2]

LAUNCHED = """
import os
import sys
import warnings
from pathlib import Path
import peft
import torch
from transformers import AutoModelForCausalLM
from interp.moelora.training.training import TrainingSettings
from interp.commands.train import train_moelora
model, data, run, port, folder = sys.argv[1:]
settings = TrainingSettings(
    model=model, data=(data,), limit=60, test_limit=4, experts=4, rank=2, dropout=0.1,
    router_noise=0.1, steps=6, batch=4, accumulate=1, log_every=2, save_every=2,
)
for rank in "01":
    if os.fork() == 0:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        train_moelora(settings, Path(run), device="cpu", progress=False)
        sys.exit()
failed = any([os.wait()[1] for _ in range(2)])
warnings.simplefilter("ignore")
base = AutoModelForCausalLM.from_pretrained(folder + "/base", dtype=torch.float32)
adapted = peft.PeftModel.from_pretrained(base, folder + "/adapter").eval()
with torch.no_grad():
    torch.save(adapted(**torch.load(folder + "/batch.pt")).logits, folder + "/logits.pt")
sys.exit(failed)
"""
"""Two processes with the environment that ``accelerate launch`` gives them; then an adapter."""


@dataclass(frozen=True)
class NewProcess:
    """What was computed here for the new process, and what it made."""

    run: Path
    loaded: Tensor
    with_adapter: Tensor
    without: Tensor


@pytest.fixture(scope="module")
def elsewhere(
    adapt: Any,
    plain_tokenizer: Any,
    model_folder: Path,
    sums: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> NewProcess:
    folder = tmp_path_factory.mktemp("elsewhere")
    adapted = adapt(target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    batch = {"input_ids": torch.randint(2, len(plain_tokenizer), (3, 9))}
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
        adapted.save_pretrained(str(folder / "adapter"))
        with adapted.disable_adapter():
            without = adapted(**batch).logits
        with_adapter = adapted(**batch).logits
    adapted.unload().save_pretrained(folder / "base")
    torch.save(batch, folder / "batch.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = map(str, (model_folder, sums, folder / "run", port, folder))
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHED, *words],
        env=os.environ
        | {
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return NewProcess(folder / "run", torch.load(folder / "logits.pt"), with_adapter, without)


def test_a_new_process_loads_the_same_bits(elsewhere: NewProcess) -> None:
    assert torch.equal(elsewhere.loaded, elsewhere.with_adapter)
    assert not torch.equal(elsewhere.loaded, elsewhere.without)


def test_two_processes_train_as_one(elsewhere: NewProcess, finished: Path) -> None:
    """Two processes with one micro-batch each take the steps of one process with two."""
    metrics = read_json(elsewhere.run / "metrics.json")
    assert metrics["processes"] == 2
    one, two = (
        load_file(run / "adapter" / "adapter_model.safetensors")
        for run in (finished, elsewhere.run)
    )
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    logged = [read_json(path / "metrics.json")["last_step"] for path in (finished, elsewhere.run)]
    for line in logged:
        # Batches of an epoch are counted in whole ones, and two processes take two at a time.
        del line["seconds_per_step"], line["epoch"]
    assert logged[1] == pytest.approx(logged[0], abs=1e-5)
