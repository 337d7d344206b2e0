"""Who may ask, and what a browser may do with the answer.

A page on 127.0.0.1 can be reached by every site that the user visits: by name, where the site's own
name is made to point to 127.0.0.1 (DNS rebinding), and by address, from a form or a script of the site.
So the request must name this machine (``Host``), and must not come from another origin. There is no CORS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

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
