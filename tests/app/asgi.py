"""Asks an ASGI application without a network."""

import asyncio
import json


def asked(app, path, *, method="GET", body=None, headers=()):
    """Status, headers and body of the answer."""
    sent = []
    content = b"" if body is None else json.dumps(body).encode()
    given = {"host": "127.0.0.1:1234", "content-type": "application/json"} | dict(headers)

    asked_for = []

    async def receive():
        if asked_for:
            await asyncio.sleep(3600)  # the client waits for the answer
        asked_for.append(True)
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1234),
    }
    asyncio.run(app(scope, receive, send))
    names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], names, b"".join(message.get("body", b"") for message in sent[1:])
