"""What it costs to look at every weight for NaN and infinity, beside loading the model.

python benchmarks/weight_check.py [--model smollm2-135m]
"""

import argparse
import statistics
import time
from pathlib import Path

from interp.files.documents import write_json
from interp.models import load_model, resolve
from interp.models.whole import first_bad_weight

OUT = Path(__file__).parent / "results" / "weight_check.json"
TIMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    resolve(options.model)
    loads, checks = [], []
    for _ in range(TIMES):
        begin = time.perf_counter()
        model = load_model(options.model, device="cpu", check_finite=False)
        loads.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        first_bad_weight(model.original_model)
        checks.append(time.perf_counter() - begin)
    load, check = statistics.median(loads), statistics.median(checks)
    content = {
        "model": options.model,
        "load_seconds": round(load, 3),
        "check_seconds": round(check, 4),
        "share": round(check / (load + check), 4),
        "times": TIMES,
    }
    write_json(OUT, content)
    print(content)


if __name__ == "__main__":
    main()
