"""Runs the page's app. Imports the extra ``serve`` only when it is called."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

from extractor.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection

    from classifiers.lookup import Lookup

NEEDED = ("fastapi", "uvicorn")
PROGRAM = "hser-lookup serve"


def serve(
    lookup: Lookup,
    projection: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page of an opened run until Ctrl-C. ``say`` is told its address.

    Raises SettingsError where the extra is missing, or the address cannot be listened on.
    """
    require_extra()
    import uvicorn

    from classifiers.page.app import make_app

    app = make_app(lookup, projection, hosts=hosts_of(host))
    # ws: there are none, and what uvicorn would import for them may not be there.
    config = uvicorn.Config(app, ws="none", log_level="warning", server_header=False)
    with _listening(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listening.getsockname()[1]}/  (Ctrl-C ends it)")
        if not is_local(host):
            say(f"on {host} all who reach this machine can hear the recordings of {lookup.store.path}")
        with suppress(KeyboardInterrupt):  # uvicorn ends in order, and raises it again
            uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise SettingsError(
            f"{PROGRAM}: cannot listen on {host}:{port}: {reason}; take another --port or --host"
        ) from error


def require_extra() -> None:
    """Raises SettingsError that names the extra, where a package of it is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SettingsError(f"{PROGRAM} needs {' and '.join(missing)}: pip install 'hser[serve]'")


def is_local(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hosts_of(host: str) -> Collection[str] | None:
    """Names under which a server that listens on ``host`` may be asked; None for any."""
    from classifiers.page.guard import LOCAL_HOSTS

    return LOCAL_HOSTS | {host} if is_local(host) else None
