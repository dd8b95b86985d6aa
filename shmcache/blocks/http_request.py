"""The HTTP request block."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx

from shmcache.blocks.block import Block, Cost, Inputs, Outputs
from shmcache.blocks.checks import boolean_of, check_result, number_of, object_of, text_of
from shmcache.errors import BlockError

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_MAX_BYTES = 1_048_576


class HttpRequest(Block):
    """Asks an HTTP server. Costs a credit for each byte of its inputs in msgpack.

    Inputs: `url` (http or https); `method` (GET); `headers` and `query`, objects of text; `json`, any value, or
    `text`, as the body; `timeout_seconds` (30) for the whole exchange, redirects included; `max_bytes` (1 MiB) of the
    response's body after decompression; `allow_error_status` (false); `trigger`, to be linked to.

    Yields `body` (decoded where the response says it is JSON, else text), `status`, and `headers` (lower-case names).
    Raises BlockError if the server cannot be reached, is too slow, sends too much or what is no text, or answers with a
    status of 400 or more while `allow_error_status` is false."""

    id = "shmcache.http_request"
    inputs = (
        *("url", "method", "headers", "query", "json", "text"),
        *("timeout_seconds", "max_bytes", "allow_error_status", "trigger"),
    )
    outputs = ("body", "status", "headers")
    cost = Cost(1, "byte")

    def run(self, inputs: Inputs) -> Outputs:
        """Send the request and yield the response's parts. Raises BlockError."""
        url = text_of(self, inputs, "url", longest=10_000)
        method = text_of(self, inputs, "method", "GET").upper()
        if method not in _METHODS:
            raise BlockError(f"{self.id}: input 'method': expected one of {', '.join(_METHODS)}, got {method!r}")
        timeout_seconds = number_of(self, inputs, "timeout_seconds", DEFAULT_TIMEOUT_SECONDS, least=0.001, most=3_600)
        max_bytes = int(number_of(self, inputs, "max_bytes", DEFAULT_MAX_BYTES, least=0, most=2**30))
        allow_error_status = boolean_of(self, inputs, "allow_error_status", False)
        options: dict[str, Any] = {
            "headers": self._texts(inputs, "headers"),
            "params": self._texts(inputs, "query") or None,
        }
        if "json" in inputs:
            options["json"] = inputs["json"]
        elif "text" in inputs:
            options["content"] = text_of(self, inputs, "text").encode()
        try:
            response, content = self._exchange(method, url, options, timeout_seconds, max_bytes)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError, TypeError) as error:
            raise BlockError(f"{self.id}: {method} {url}: {str(error) or type(error).__name__}") from None
        if response.status_code >= 400 and not allow_error_status:
            raise BlockError(f"{self.id}: {method} {url}: status {response.status_code} {response.reason_phrase}")
        yield "body", check_result(self, self._decode(response, content))
        yield "status", response.status_code
        yield "headers", check_result(self, {name.lower(): value for name, value in response.headers.items()})

    def _texts(self, inputs: Inputs, name: str) -> dict[str, str]:
        values = object_of(self, inputs, name, {})
        return {key: text_of(self, {f"{name}.{key}": value}, f"{name}.{key}") for key, value in values.items()}

    def _exchange(
        self, method: str, url: str, options: dict[str, Any], timeout_seconds: float, max_bytes: int
    ) -> tuple[httpx.Response, bytes]:
        deadline = time.monotonic() + timeout_seconds
        content = bytearray()
        with (
            httpx.Client(timeout=timeout_seconds, follow_redirects=True, max_redirects=5) as client,
            client.stream(method, url, **options) as response,
        ):
            # The client's own limit is for each read: a server that drips would never pass it.
            for part in response.iter_bytes(65_536):
                content += part
                if len(content) > max_bytes:
                    raise BlockError(f"{self.id}: {method} {url}: the response passes {max_bytes:,} bytes")
                if time.monotonic() > deadline:
                    raise BlockError(f"{self.id}: {method} {url}: not finished after {timeout_seconds:g} seconds")
        return response, bytes(content)

    def _decode(self, response: httpx.Response, content: bytes) -> Any:
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if content and (media_type == "application/json" or media_type.endswith("+json")):
                return json.loads(content)
            return content.decode(response.charset_encoding or "utf-8")
        except (ValueError, LookupError, RecursionError) as error:
            raise BlockError(f"{self.id}: the response's body cannot be decoded: {error}") from None
