"""The page on a local server, which listens on the loopback address only."""

import logging
import socket
from typing import Any

import panel as pn
from panel.io.server import Server

from interp.errors import UserError
from interp.explore.explorer import Explorer
from interp.explore.view import View
from interp.report.page import template_text

LOOPBACK = "127.0.0.1"
logger = logging.getLogger(__name__)


def make_server(explorer: Explorer, *, port: int = 0) -> Server:
    """A server of the page, not yet running; port 0 takes a free port.

    Each browser tab has its own page; all share the model, which answers one question at a time.
    Only pages of this server can connect to it. Raises UserError if the port is in use.
    """

    def page() -> Any:
        template = pn.Template(template_text("explore_page.html.j2"))
        template.add_panel("page", View(explorer).layout)
        return template

    _check_free(port)
    return pn.io.server.get_server(
        page, port=port, address=LOOPBACK, title="faithlens explore", show=False, start=False
    )


def address_of(server: Server) -> str:
    """The address for a browser; the server accepts no other host name."""
    return f"http://localhost:{server.port}/"


def _check_free(port: int) -> None:
    if not 0 <= port < 65536:
        raise UserError(f"port is {port}: it must be a number from 0 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror or error}): choose another, or "
                "0 for a free one"
            ) from error
