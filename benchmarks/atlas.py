"""Write docs/atlas.md from run directories: the models that were really run, side by side.

    python benchmarks/atlas.py RUN RUN …

The commands that made these runs are on the page. The figure needs the extra `export` (kaleido) and
a Chromium. Writes benchmarks/results/atlas.json too: the rows, and the comparisons of the heads.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

import interp
from interp.files.documents import write_atomically, write_json
from interp.report.atlas_page import render_atlas

ROOT = Path(__file__).parent.parent
FIGURE = "images/atlas.png"
HEAD = """\
# Model atlas

Models that were really run: their heads, how stable they are, what constraining them gains and
costs, how they transfer, the gate, and adapters with their experts. `interp atlas RUN RUN …` makes
such a page of any run directories; each adds a row.

This one was made by `benchmarks/atlas.py`, which also writes `benchmarks/results/atlas.json`, with
all intervals, from the runs of these commands:

```bash
interp locate --premises capitals --site attention --limit 60 --out runs/float32
interp evaluate runs/float32 --answers none
interp locate --premises capitals --site attention --limit 60 --dtype bfloat16 --out runs/bfloat16
interp evaluate runs/bfloat16 --answers none
interp locate --premises capitals --site attention --limit 60 --out runs/4bit \\
    --quantization bnb-4bit
interp evaluate runs/4bit --answers none --counts 3
python benchmarks/atlas_adapter.py
interp demo
python benchmarks/atlas.py runs/float32 runs/bfloat16 runs/4bit runs/adapted runs/demo runs/moelora
```

`adapted` is `float32` with the adapter of `moelora`, which was trained without the rows that name a
subject whose fact `float32` knows; the further facts that `adapted` knows may have been trained on.
`demo` constrains the heads that ship with the package, which were found
without capitals, behind the detector that ships; the other runs have no gate. The facts that a
model knows differ between the runs, and so do their questions: n and the first column say how many.
How heads transfer over many relations is on [its own page](transfer.md).{left_out}

"""


@dataclass(frozen=True)
class Options:
    """Which runs, and where the page goes."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    left_out: str = ""
    """A sentence about a model that was not run, and why."""
    page: Path = ROOT / "docs" / "atlas.md"
    out: Path = Path(__file__).parent / "results" / "atlas.json"
    picture: bool = True
    """Also draw the figure."""


def main(options: Options) -> None:
    """Write the page, its figure and the rows."""
    found = interp.atlas(options.runs)
    tables = {"rows": found.to_dataframe(), "comparisons": found.comparisons}
    content = {
        name: json.loads(str(table.to_json(orient="records"))) for name, table in tables.items()
    }
    write_json(options.out, content)
    if options.picture:
        found.plot().write_image(options.page.parent / FIGURE, scale=2)
    head = HEAD.format(left_out=f" {options.left_out}".rstrip()).rstrip() + "\n"
    write_atomically(options.page, render_atlas(found, figure=FIGURE, head=head))
    print(f"wrote {options.page} and {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
