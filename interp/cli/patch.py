"""``interp patch``: patch a component on pairs of texts, print the largest effects."""

from rich.console import Console

from interp.cli.config import settings_of, to_config
from interp.cli.effects_table import effects_table
from interp.cli.loading import engine_of, load
from interp.cli.options import PatchOptions
from interp.commands.patch import PatchSettings, load_pairs, patch_run
from interp.files.documents import read_json, write_yaml
from interp.report.patch_page import patch_sentences
from interp.runs.engines import check_engine
from interp.runs.lock import check_free


def patch(options: PatchOptions, console: Console) -> None:
    """Effects of every unit; see ``interp.commands.patch``."""
    settings = settings_of(PatchSettings, options)
    check_engine(options.engine)
    check_free(options.out)
    load_pairs(settings)  # a broken file should not wait for the model
    model = load(options, console)
    with engine_of(options, model) as engine:
        result = patch_run(
            model, settings, options.out, engine=engine, check_dtype=options.dtype_check
        )
    write_yaml(options.out / "config.yaml", to_config(options))
    summary = read_json(options.out / "summary.json")
    top = result.to_dataframe().drop(columns=["p_value", "rank"])
    title = f"{result.component}, {result.method}: largest of {summary['n_units']} effects"
    console.print(effects_table(top, title=title))
    for sentence in patch_sentences(summary):
        console.print(f"• {sentence}", markup=False, highlight=False)
    console.print(f"\nreport: {options.out / 'report.html'}", highlight=False, soft_wrap=True)
