"""A judge that costs almost nothing: `python -m benchmarks.judging.server` prints its port and replies m to everything.

A plain asyncio protocol, so that the client is what is measured.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

MODEL = "stub"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOP = [{"token": "m", "logprob": -0.25, "bytes": [109]}, {"token": "M", "logprob": -1.5, "bytes": [77]}]
_BODY = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "m"},
                "logprobs": {"content": [{**_TOP[0], "top_logprobs": _TOP}]},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 500, "completion_tokens": 1, "total_tokens": 501},
    }
).encode()
_REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class Judge(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._data, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self._data) < whole:
                return
            self._data = self._data[whole:]
            self._transport.write(_REPLY)


async def serve() -> None:
    """Print the port, and serve until standard input ends."""
    server = await asyncio.get_running_loop().create_server(Judge, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
