"""Server-sent events as a client reads them: the data of each, from an engine or from the policy server.

By the standard (HTML, section 9.2) a line ends with CR, LF or both and with nothing else, so that U+2028 stands in a
text as any other character does; the reading is httpx-sse's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
from httpx_sse import EventSource


class _WithEnd(httpx.AsyncByteStream):
    """A body that ends with a blank line, whether it was sent or not.

    The standard drops an event after which the stream ends. Engines forget the last blank line; the event before it is
    whole where its JSON is.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._response.aiter_bytes():
            yield piece
        yield b"\n\n"


async def data_of_events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of each event in a streamed response; comments, and events without any, are passed over.

    Raises:
        httpx.HTTPError: the connection broke.
    """
    # By the standard the text is UTF-8, perhaps after a byte order mark, whatever a header says of it; some engines
    # call the stream plain text.
    headers = {"Content-Type": "text/event-stream; charset=utf-8-sig"}
    source = EventSource(httpx.Response(200, headers=headers, stream=_WithEnd(response)))
    async for event in source.aiter_sse():
        if event.data:
            yield event.data
