"""Connections that say nothing end: half-open ones must not keep the page from everyone else.

uvicorn ends a connection that is idle after an answer, and no other. Here each one has a time to
bring a request's head, and to take its answer; the body's time is `uploads`' own. Where many wait,
a new one takes the place of the one that has said nothing for longest.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from dsts_pipeline.serve.app.limits import Limits

_POLL_SECONDS = 0.25


def connections_within(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol with these limits."""
    return type("LimitedConnection", (_Connection,), {"limits": limits})


class _Connection(H11Protocol):
    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        waiting = [one for one in self.connections if isinstance(one, _Connection) and one._waits]
        if len(waiting) >= self.limits.num_silent:
            longest = min(waiting, key=lambda one: one._since)
            self.connections.discard(longest)  # now: it is told of its end a moment later
            longest.transport.abort()
        super().connection_made(transport)
        self._state, self._since = self._look(), self.loop.time()
        self._timer = self.loop.call_later(_POLL_SECONDS, self._watch)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        """Whether a request's head is to come, or what is left of a body that nobody wants."""
        return self.cycle is None or self.cycle.response_complete

    def _look(self) -> tuple[str, object]:
        """What this connection is about; the request, too, since each has its own time."""
        if self.flow.write_paused:
            return "taking", None
        return ("waiting" if self._waits else "working"), self.cycle

    def _watch(self) -> None:
        now, state = self.loop.time(), self._look()
        if state != self._state:
            self._state, self._since = state, now
        seconds = {"waiting": self.limits.head_seconds, "taking": self.limits.answer_seconds}
        if now - self._since >= seconds.get(state[0], float("inf")):
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(_POLL_SECONDS, self._watch)
