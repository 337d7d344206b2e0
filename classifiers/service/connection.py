"""A connection that holds no request open for long: uvicorn's own bounds only the time between requests.

A request's line and headers have to be there within `Limits.head` of the connection or of the answer
before, and what follows them within `Limits.body`; else the answer is 408, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from extractor.types import Seconds

if TYPE_CHECKING:
    from classifiers.service.uploads import Limits


class BoundedProtocol(H11Protocol):
    """To be given to uvicorn's ``Config`` as ``http``, with its limits bound."""

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
