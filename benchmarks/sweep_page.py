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

What all prompts begin with, such as a chat's preamble, runs once, not once a prompt. The rest is
matrix products at the machine's own rate, in batches of all heads of a layer. Prompts whose tails
differ in length are cut into batches of like lengths. The plain modules run instead of the hooked
ones, with keys and values of the shared beginning copied once, and attention by torch's fused
kernel, or by three plain operations where there are so few columns that these are faster. Batches
run side by side, one thread each, because two threads inside every operation wait for each other
after each of them.

Tried without gain: batches larger than the default budget (fresh memory costs more than larger
products save); MLPs cut into slabs of tokens; RMS norms, gated MLPs and rotary embeddings in fewer
passes over memory (15 pairs on a busy machine: the same processor time at the median, quartiles
from 8 per cent more to 9 per cent less); the rows' queries over a shared prefix folded into one
product; gate and up, or query, key and value, as one product; oneDNN's products with the
activation fused into them. Where a processor has matrix units for bfloat16 the difference of a row
from the unedited run can be multiplied as two bfloat16 halves, three products for one in float32,
with errors of float32's own size: the products alone run twice as fast, and splitting, subtracting
and adding take as long again.
The projections of the patched layer as products of the head's 64 numbers would leave out two per
cent more. A strided view in front of the unembedding sends torch to a batched product
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
{rate_line(result)}\
* {null["sets"]} random sets of three heads, as in the evaluation's null: {null["seconds"]:.1f} s,
  {null["ratio"]:.1f} times as fast as whole forward passes. Their lowest head lies low, so that few
  layers can be left out.
* Pearson correlation of attribution with the exact mean effects:
  {result["attribution"]["pearson_with_exact"]:.3f}.

{WHERE_THE_TIME_GOES}"""


def rate_line(result: dict[str, Any]) -> str:
    """The share of the machine's product rate; the rate itself varies, and can be read too low."""
    share, rate = result["share_of_matrix_rate"], result["matrix_gflops"]
    if share > 1:
        return (
            f"* The sweep's own products alone came to {share * rate:.0f} GFLOP/s, more than the "
            f"{rate:.0f} that\n  the machine gave when its rate was read, in a slow moment.\n"
        )
    return (
        f"* {share:.0%} of the machine's own float32 matrix-product rate\n"
        f"  ({rate:.0f} GFLOP/s at an MLP's shape) is reached, counting only the products\n"
        "  that the sweep cannot do without.\n"
    )


if __name__ == "__main__":
    target = ROOT / "docs" / "speed.md"
    target.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"wrote {target}")
