"""Who may ask the server: whoever has its address with the token in it, from a page of its own, on this machine."""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-src 'self'; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'"
)
"""What the app's own page may load: what this server gives, and no script in the page itself."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """An ASGI application around another: 403 for a wrong host, another origin, or an address without the token."""

    def __init__(self, inside: Any, token: str, port: int) -> None:
        """Addresses are http://127.0.0.1:PORT/TOKEN/..."""
        self.inside, self.token = inside, token
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, its path without the token; every answer has the headers."""
        if scope["type"] == "lifespan":
            await self.inside(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message.get("headers", [])}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
                message["headers"] = [*message.get("headers", []), *more]
            await send(message)

        path = self._inner_path(scope)
        if path is None and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
            return
        if path is None:
            await with_headers({"type": "http.response.start", "status": 403, "headers": []})
            await with_headers({"type": "http.response.body", "body": b"403: open the address that was printed.\n"})
            return
        await self.inside({**scope, "path": path, "raw_path": path.encode()}, receive, with_headers)

    def _inner_path(self, scope: Scope) -> str | None:
        """The path behind the token; None for a request that may not come in."""
        if scope["type"] != "http":
            return None
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin1").lower(), []).append(value.decode("latin1"))
        if len(headers.get("host", [])) != 1 or headers["host"][0] not in self.hosts:
            return None
        if any(origin not in self.origins for origin in headers.get("origin", [])):
            return None
        if any(site not in ("same-origin", "none") for site in headers.get("sec-fetch-site", [])):
            return None
        _, given, rest = (*scope["path"].split("/", 2), "", "")[:3]
        return f"/{rest}" if secrets.compare_digest(given.encode(), self.token.encode()) else None
