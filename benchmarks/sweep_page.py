"""Write docs/speed.md from what head_sweep.py measured: ``python benchmarks/sweep_page.py``."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "head_sweep.json"


WHERE_THE_TIME_GOES = """## Where the time goes

A loop over heads runs every layer over every token for each head. The same numbers come from less:

| what is left out | why nothing changes |
|---|---|
| tokens before the first difference | causal: their keys and values are computed once, and shared |
| layers below the patched one | they see the same input as in the unpatched run |
| attention of the patched layer | a head's output changes, not what it reads |
| projections and MLP of the last layer but at the last token | nothing else is read |
| the unembedding but of the last token, and of the two answers | the metric asks for no more |

The rest is matrix products at the machine's own rate, in batches of all heads of a layer. Prompts
whose tails differ in length are cut into batches of like lengths. The plain modules run instead of
the hooked ones, with RMS norms in one operation, a gated MLP that writes over its own projection,
and attention by torch's fused kernel, or by three plain operations where there are so few columns
that these are faster. Batches run side by side, one thread each, because two threads inside every
operation wait for each other after each of them.

Tried without gain: batches larger than the default budget (fresh memory costs more than larger
products save); MLPs cut into slabs of tokens; the rows' queries over a shared prefix folded into
one product; gate and up, or query, key and value, as one product; oneDNN's products with the
activation fused into them; a rotary embedding without copies (two per cent, for a function of the
model's own exchanged). A strided view in front of the unembedding sends torch to a batched product
that is many times slower, so that it is made contiguous first.
"""


def page(result: dict[str, Any]) -> str:
    """The page's text."""
    seconds = sum(result["seconds"]) / len(result["seconds"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    peer = f"all {result['peer_heads_timed']} heads"
    if result["peer_heads_timed"] < 270:
        peer = f"{result['peer_heads_timed']} heads timed, scaled to 270"
    rows = [
        ("TransformerLens' loop, every head", result["peer_seconds"], 1.0),
        ("`patch_heads`, every head, exact", seconds, result["ratio"]),
        ("`attribute_heads`, every head", result["attribution"]["seconds"],
         result["attribution"]["ratio"]),
        ("`patch_paths` to the logits, every head", result["direct_effects"]["seconds"],
         result["direct_effects"]["ratio"]),
    ]  # fmt: skip
    if "nnsight" in result:
        one = result["nnsight"]
        rows.insert(1, (f"nnsight recipe ({one['heads_timed']} heads timed, scaled)",
                        one["seconds"], result["peer_seconds"] / one["seconds"]))  # fmt: skip
    table = "".join(f"| {name} | {seconds:.1f} | {ratio:.1f} |\n" for name, seconds, ratio in rows)
    null = result["random_sets"]
    return f"""# Speed

Made by `benchmarks/head_sweep.py` and `benchmarks/sweep_page.py`; the numbers are in
`benchmarks/results/head_sweep.json`. {result["model"]}, {result["prompts"]} chat-formatted capitals
pairs of {result["tokens"]} tokens, first difference at tokens {min(result["first_difference"])} to
{max(result["first_difference"])}, float32, {result["threads"]} threads, one process, in turn;
{peer}. {versions}.

| | seconds | times as fast as TransformerLens' loop |
|---|---|---|
{table}
* Largest difference from TransformerLens' values: {result["largest_difference"]:.1e} (metric: logit
  difference); of a repeat: {result["repeat_difference"]:.1e}.
* Peak memory above the loaded model: {result["peak_mib"]:.0f} MiB, the loop's
  {result["peer_peak_mib"]:.0f} MiB.
* {result["share_of_matrix_rate"]:.0%} of the machine's own float32 matrix-product rate
  ({result["matrix_gflops"]:.0f} GFLOP/s at an MLP's shape) is reached, counting only the products
  that the sweep cannot do without.
* {null["sets"]} random sets of three heads, as in the evaluation's null: {null["seconds"]:.1f} s,
  {null["ratio"]:.1f} times as fast as whole forward passes. Their lowest head lies low, so that few
  layers can be left out.
* Pearson correlation of attribution with the exact mean effects:
  {result["attribution"]["pearson_with_exact"]:.3f}.

{WHERE_THE_TIME_GOES}"""


if __name__ == "__main__":
    target = ROOT / "docs" / "speed.md"
    target.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"wrote {target}")
