"""What every request must be like and every response carries; plain ASGI, no framework.

A page of another site must not be able to use this one through the visitor's browser: the Host
must be ours (else a name that was rebound to 127.0.0.1 could read answers), an Origin too, and no
CORS header is ever sent. The policy lets the page load nothing but its own files, run no inline
script, and be framed by nobody. Source: https://www.w3.org/TR/CSP3/
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Lets requests through to `app` that are meant for this page.

    Args:
        hosts: What a Host header may say, such as "localhost:8765"; None: anything, for a page
            that was opened to the network on purpose.
    """

    def __init__(self, app: App, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse, one request."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        if (problem := self._judge(scope)) is not None:
            status, text = problem
            await _refuse(send_with_headers, status, text)
            return
        await self._app(scope, receive, send_with_headers)

    def _judge(self, scope: Scope) -> tuple[int, str] | None:
        """Status and text for a request that is not meant for this page."""
        host = _header(scope, b"host").lower()
        if self._hosts is not None and host not in self._hosts:
            return 421, "this page answers under its own address only"
        origin = _header(scope, b"origin").lower()
        if origin and origin != f"http://{host}":
            return 403, "requests of other sites are refused"
        return None


def _header(scope: Scope, name: bytes) -> str:
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else ""


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
