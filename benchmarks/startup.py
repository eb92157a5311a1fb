"""Where the seconds of ``interp locate`` go beside its sweeps, by phase: one table, one JSON file.

    python benchmarks/startup.py [--method attribution] [--limit 24] [--device cpu] [--cold]
                                 [--evaluate] [--out benchmarks/results/startup.json]

A new process runs the command line on the embedded model. Every function in ``PHASES`` has a clock;
what it calls in another phase counts there only. Processor seconds are those of all threads of the
process; on a GPU each phase also waits for the device. What no phase has is ``everything else``.
``--cold`` begins with an empty cache beside the converted weights: fingerprint and self-check are
made.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

IMPORTS: dict[str, tuple[str, ...]] = {
    "import torch": ("torch",),
    "import transformers": ("transformers", "transformers.modeling_utils"),
    "import TransformerLens": ("transformer_lens.model_bridge",),
    "import interp and the rest": ("interp.cli.options", "interp.cli.commands"),
}
PHASES: dict[str, tuple[tuple[str, str], ...]] = {
    "find or convert the weights": (("interp.models.load", "resolve"),),
    "fingerprint of the weights": (("interp.models.load", "fingerprint_of_folder"),
                                   ("interp.models.converted", "fingerprint_of_folder")),
    "read tokenizer": (("interp.models.folder", "read_tokenizer"),),
    "read weights, to the device": (("interp.models.load", "read_folder"),),
    "build the hooked model": (("interp.models.load", "wrap"),),
    "self-check": (("interp.models.load", "trial_logits"), ("interp.models.load", "check_model")),
    "render and hash the prompts": (("interp.commands.known", "prompts_identity"),
                                    ("interp.commands.known", "premise_rows"),
                                    ("interp.commands.locate", "prompts_digest"),
                                    ("interp.commands.locate", "premise_rows")),
    "ask for the facts": (("interp.commands.known", "check_knowledge"),),
    "encode the prompts": (("interp.commands.locate", "as_encoded"),),
    "sweeps": (("interp.runs.shards", "run_shard"),),
    "statistics": (("interp.heads.effects", "head_statistics"),),
    "manifest": (("interp.commands.locate", "write_manifest"),),
}  # fmt: skip
