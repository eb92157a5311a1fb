"""``interp explore``: the page on a local server until it is interrupted."""

import webbrowser
from dataclasses import replace

from rich.console import Console

from interp.cli.loading import load
from interp.cli.options import ExploreOptions
from interp.explore import check_installed, open_run
from interp.explore.opening import check_explorable
from interp.runs.manifest import recorded_model


def explore(options: ExploreOptions, console: Console) -> None:
    """Open the page of a run; see ``interp.explore``."""
    check_installed()
    check_explorable(options.run)  # a misspelt run should not wait for the model
    spec = options.model or recorded_model(options.run)["spec"]
    model = load(replace(options, model=spec), console)
    explorer = open_run(options.run, model=model)
    from interp.explore.serve import address_of, make_server

    server = make_server(explorer, port=options.port)
    address = address_of(server)
    console.print(f"exploring {options.run} at {address}   (Ctrl-C ends it)", highlight=False)
    if options.open:
        server.io_loop.add_callback(webbrowser.open, address)
    try:
        server.run_until_shutdown()
    except KeyboardInterrupt:
        console.print("ended")
    finally:
        server.stop()
