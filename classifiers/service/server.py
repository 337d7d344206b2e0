"""Runs the page's app. Imports the extra ``serve`` only when it is called."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from extractor.errors import HserError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import FrameType

    import uvicorn
    from fastapi import FastAPI

    from classifiers.lookup import Lookup
    from classifiers.service.corpus_map import CorpusMap
    from classifiers.service.uploads import Limits

GRACE_SECONDS = 3  # for answers that are under way at Ctrl-C
NEEDED = ("fastapi", "uvicorn")
PROGRAM = "hser-lookup serve"


def serve(
    lookup: Lookup,
    projection: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    say: Callable[[str], None] = print,
    note: Callable[[str], None] | None = None,
) -> None:
    """Serve the page of an opened run until Ctrl-C.

    ``say`` is told its address once it can answer, ``note`` (by itself: stderr) what is done until then.
    Raises SettingsError where the extra is missing, or the address cannot be listened on.
    """
    require_extra()
    from classifiers.service.app import make_app
    from classifiers.service.uploads import Limits

    limits = Limits()
    app = make_app(lookup, projection, limits, hosts_of(host))
    with _bound(host, port) as bound:
        warm_up(lookup, app.state.corpus_map, note or partial(print, file=sys.stderr))
        bound.listen()
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{bound.getsockname()[1]}/  (Ctrl-C ends it)")
        if not is_local(host):
            say(f"on {host} all who reach this machine can hear the recordings of {lookup.store.path}")
        server_of(app, limits).run(sockets=[bound])


def warm_up(lookup: Lookup, corpus_map: CorpusMap, note: Callable[[str], None]) -> None:
    """All that takes long at its first use, before the first visitor, whose time is limited."""
    note(f"loading the model of {lookup.store.path} ...")
    try:
        lookup.warm_up()
    except HserError as error:  # the map and its recordings are there without it
        note(f"recordings cannot be looked up here: {error}")
    note(f"drawing the map of {len(corpus_map.rows):,} recordings ({corpus_map.projection}) ...")
    corpus_map.warm_up()


def server_of(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """uvicorn, with a bound on every request's time."""
    import uvicorn

    from classifiers.service.guard import BoundedProtocol

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # As uvicorn's own, which raises the signal again at its end: that would be a second Ctrl-C.
            self.should_exit = True

    config = uvicorn.Config(
        app,
        http=partial(BoundedProtocol, limits=limits),
        ws="none",  # there are none, and what uvicorn would import for them may not be there
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return Server(config)


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address, which nobody else has then; not listened on yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        if os.name == "posix":  # as `socket.create_server`: a port of a moment ago is free again
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise SettingsError(
            f"{PROGRAM}: cannot listen on {host}:{port}: {reason}; take another --port or --host"
        ) from error
    return bound


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
    from classifiers.service.guard import LOCAL_HOSTS

    return LOCAL_HOSTS | {host} if is_local(host) else None
