"""Who may ask, and what a browser may do with the answer; and for how long a request may be open.

A page on 127.0.0.1 can be reached by every site that the user visits: by name, where the site's own
name is made to point to 127.0.0.1 (DNS rebinding), and by address, from a form or a script of the site.
So the request must name this machine (``Host``), and must not come from another origin. There is no CORS.

uvicorn's own bounds only the time between requests. A request's line and headers have to be there within
`Limits.head` of the connection or of the answer before, and what follows them within `Limits.body`; else the
answer is 408, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from classifiers.service.uploads import Limits
from extractor.types import Seconds

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

SECURITY_HEADERS = {
    # `blob:` is the recording that was just made or opened, in the page itself.
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self' blob:; media-src 'self' blob:; object-src 'none';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class Guard:
    """ASGI middleware. ``hosts``: names under which this server may be asked; None for any."""

    def __init__(self, app: _App, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: _Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        refused = self._refused(Headers(scope=scope))
        await (refused or self.app)(scope, receive, send_guarded)

    def _refused(self, headers: Headers) -> JSONResponse | None:
        try:  # without port and brackets
            host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        except ValueError:  # unbalanced brackets
            host = ""
        if self.hosts is not None and host not in self.hosts:
            return JSONResponse({"error": f"this server is not asked as {host!r}"}, 400)
        # Not sent by command-line tools, which no site can make ask.
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        # A link from elsewhere to the page itself is harmless.
        if foreign and headers.get("sec-fetch-mode") != "navigate":
            return JSONResponse({"error": "asked from another site"}, 403)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return JSONResponse({"error": "asked from another site"}, 403)
        return None


class BoundedProtocol(H11Protocol):
    """Holds no request open for long; for uvicorn's ``Config`` as ``http``, with its limits bound."""

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seconds: dict[Any, Seconds] = {h11.IDLE: limits.head, h11.SEND_BODY: limits.body}
        self._awaited: Any = None  # the state in which the other side is, where something has to come
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        # A body that turns out not to be HTTP: its answer is this one, the application's would be a second.
        self._leave_cycle()
        super().send_400_response(msg)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._await(None)

    def _watch(self) -> None:
        state = self.conn.their_state
        self._await(state if state in self._seconds and not self.transport.is_closing() else None)

    def _await(self, state: Any) -> None:
        """One timer for each state, from when it began: bytes that dribble in do not put it off."""
        if state is self._awaited:
            return
        self._awaited = state
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if state is None else self.loop.call_later(self._seconds[state], self._too_late)

    def _too_late(self) -> None:
        if self.transport.is_closing():
            return
        silent = self._awaited is h11.IDLE and not self.conn.trailing_data[0]
        if not silent and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            seconds = self._seconds[self._awaited]
            body = json.dumps({"error": f"the request did not come within {seconds:g} s"}).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            response = h11.Response(status_code=408, headers=headers, reason=b"Request Timeout")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self._leave_cycle()
        self.transport.close()

    def _leave_cycle(self) -> None:
        """Whoever reads the body learns that there will be no more."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
