"""``interp probe``: probe a model on a relation, print the verdict and the detector's scores."""

from rich.console import Console

from interp.cli.config import settings_of, to_config
from interp.cli.loading import load
from interp.cli.options import ProbeOptions
from interp.commands.probe import ProbeSettings, probe_run
from interp.figures.probe_scores import detection_table
from interp.figures.tables import rich_table
from interp.files.documents import write_yaml
from interp.premises import load_premises
from interp.runs.lock import check_free


def probe(options: ProbeOptions, console: Console) -> None:
    """Maps, controls and a detector; see ``interp.commands.probe``."""
    settings = settings_of(ProbeSettings, options)
    check_free(options.out)
    load_premises(options.premises)  # a misspelt relation should not wait for the model
    report, score = probe_run(load(options, console), settings, options.out)
    write_yaml(options.out / "config.yaml", to_config(options))
    text = report.to_dataframe().map(lambda one: f"{one:.3f}" if isinstance(one, float) else one)
    console.print(rich_table(text, title="AUC on held-out subjects and templates"))
    console.print(f"• {report.sentence}", markup=False, highlight=False)
    if score is not None:
        table = detection_table(score.to_dict())
        console.print(rich_table(table, title="the detector on held-out questions"))
    console.print(f"\nreport: {options.out / 'report.html'}", highlight=False, soft_wrap=True)
