"""Asks chat models behind OpenAI-compatible endpoints, hosted or local.

The client library sends requests, waits and tries again. This module adds four guarantees: a
response is read only up to the time-out and a size; redirects are not followed; the key is in no
text that leaves this module; and an endpoint that lacks a feature is asked without it.
"""

import json
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import openai

from optim4rl.plans.planner.answer import ANSWER_SCHEMA
from optim4rl.plans.planner.prompt import Message
from optim4rl.plans.planner.propose import Answer, ChatError, Usage
from optim4rl.plans.planner.text import PlannerError, one_line

KEY_VARIABLE: Final = "OPENAI_API_KEY"
URL_VARIABLE: Final = "OPENAI_BASE_URL"
MAX_RESPONSE_BYTES: Final = 8_000_000  # a hundred thousand tokens are half a megabyte
_MAX_RETRIES: Final = 10

# Endpoints differ in structured output, and in the name of the limit of an answer's tokens. Each
# way is tried if the endpoint refuses the way before it as a bad request.
_LIMITS: Final = ("max_tokens", "max_completion_tokens")


def _ways(schema: Mapping[str, Any]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return the ways of asking for an answer of a schema."""
    form = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }
    further: tuple[dict[str, Any], ...] = ({"response_format": form}, {})
    return tuple((limit, more) for more in further for limit in _LIMITS)


class _Client(openai.DefaultHttpxClient):
    """Send requests over HTTP; responses of any status are bounded in time and size.

    Attributes:
        tries: number of requests sent since it was last set to 0.
    """

    def __init__(self, seconds: float) -> None:
        # A run makes few requests, far apart: no connection is kept for the next one.
        limits = httpx2.Limits(max_keepalive_connections=0)
        super().__init__(timeout=seconds, limits=limits, follow_redirects=False)
        self._seconds, self.tries = seconds, 0

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Return the whole response; its headers and body arrive within the time."""
        self.tries += 1
        with _Deadline(self._seconds) as deadline:
            request.extensions = {**request.extensions, "trace": deadline.watch}
            try:
                response = super().send(request, **{**options, "stream": True})
                try:
                    body = _read_body(response)
                finally:
                    response.close()
            except httpx2.HTTPError:
                if not deadline.over:
                    raise
                raise httpx2.ReadTimeout("the response takes too long", request=request) from None
        # The body is decoded and whole, so headers on its coding and length no longer hold.
        kept = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        return httpx2.Response(response.status_code, headers=kept, content=body, request=request)


class _Deadline:
    """Hang up when the time is over: each read has its own time-out, and many reads take longer.

    Args:
        seconds: time from the start of the block.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._timer = threading.Timer(seconds, self._hang_up)
        self._timer.daemon = True
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Note each new connection; the client calls this for every event."""
        stream = (
            info.get("return_value") if event.endswith(("_tcp.complete", "_tls.complete")) else None
        )
        if stream is not None:
            self._sockets.append(stream.get_extra_info("socket"))
            if self.over:
                self._hang_up()

    def _hang_up(self) -> None:
        self.over = True
        for connection in self._sockets:
            with suppress(OSError):  # The other side has hung up already.
                connection.shutdown(socket.SHUT_RDWR)


def _read_body(response: httpx2.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise _TooLong
    return bytes(body)


class _TooLong(openai.OpenAIError):
    """Report a response that is too long; it is not a transport error, so it is not tried again."""


class ChatModel:
    """Ask a chat model; the key and the endpoint come from the usual environment variables."""

    def __init__(
        self,
        model: str,
        *,
        answer_tokens: int,
        seconds: float,
        retries: int,
        schema: Mapping[str, Any] = ANSWER_SCHEMA,
    ) -> None:
        """Find the key and the endpoint; nothing is sent.

        Args:
            model: the model's name at the endpoint.
            answer_tokens: the longest answer.
            seconds: time-out of one response.
            retries: number of new tries after a time-out, a lost connection, "too many requests"
                or a fault of the endpoint.
            schema: schema of an answer, for endpoints that accept a schema.

        Raises:
            PlannerError: the key is missing, or an argument is not valid.
        """
        if not 0 < seconds < float("inf"):
            raise PlannerError(f"timeout = {seconds!r}: a positive number of seconds is needed")
        if not 0 <= retries <= _MAX_RETRIES:
            raise PlannerError(
                f"retries = {retries!r}: a number from 0 to {_MAX_RETRIES} is needed"
            )
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key:
            raise PlannerError(
                f"{KEY_VARIABLE} is not set: model {one_line(model)!r} needs a key. If the "
                f"endpoint of {URL_VARIABLE} needs none, set it to any word"
            )
        self._model, self._answer_tokens = model, answer_tokens
        self._seconds = seconds
        try:
            self._connection = _Client(seconds)
            self._client = openai.OpenAI(
                api_key=self._key,
                timeout=seconds,
                max_retries=retries,
                http_client=self._connection,
            )
            self._endpoint = _origin(str(self._client.base_url))
        except (openai.OpenAIError, httpx2.InvalidURL, ValueError) as error:
            raise PlannerError(
                f"{URL_VARIABLE} is not an address; give one like http://localhost:8000/v1"
            ) from error
        self._ways = _ways(schema)

    def ask(self, messages: list[Message]) -> Answer:
        """Return one answer.

        Raises:
            ChatError: the endpoint cannot be reached, refuses the request for good, takes too long,
                or does not answer with a chat completion.
        """
        while True:
            limit, further = self._ways[0]
            self._connection.tries = 0
            try:
                response = self._client.chat.completions.with_raw_response.create(
                    model=self._model,
                    messages=messages,  # type: ignore[arg-type]
                    extra_body={limit: self._answer_tokens, **further},
                )
                return self._read(self._hide(response.text))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if len(self._ways) == 1:
                    raise self._failure(error) from None
                self._ways = self._ways[1:]
            except openai.OpenAIError as error:
                raise self._failure(error) from None
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as error:
                if isinstance(error, ChatError):
                    raise
                what = self._hide(one_line(f"{type(error).__name__}: {error}"))
                raise ChatError(f"{self._endpoint}: the request failed: {what}") from None

    def _hide(self, text: str) -> str:
        """Return the text without the key, which an endpoint may repeat."""
        return text.replace(self._key, "[key]")

    def _failure(self, error: openai.OpenAIError) -> ChatError:
        """Describe what went wrong, for people. The error is not its cause: it may show the key."""
        tries = self._connection.tries
        tried = "after 1 try" if tries == 1 else f"after {tries} tries"
        if isinstance(error, _TooLong):
            return ChatError(
                f"{self._endpoint} answers with more than {MAX_RESPONSE_BYTES:,} bytes"
            )
        if isinstance(error, openai.APITimeoutError):
            return ChatError(
                f"{self._endpoint} does not finish its answer within timeout = "
                f"{self._seconds:g} seconds, {tried}"
            )
        if isinstance(error, openai.APIStatusError):
            raw = self._hide(error.response.text)
            code, said = error.status_code, one_line(_message(raw), 300)
            advice = {
                401: f"; is {KEY_VARIABLE} right?",
                403: f"; may {KEY_VARIABLE} use this model?",
                404: f"; is model {one_line(self._model)!r} known there, and {URL_VARIABLE} right?",
                429: f", {tried}{_asked_to_wait(error.response.headers)}",
            }.get(code, f", {tried}" if code >= 500 else "")
            return ChatError(f"{self._endpoint} answers {code}: {said!r}{advice}", raw)
        if isinstance(error, openai.APIConnectionError):
            return ChatError(
                f"{self._endpoint} cannot be reached, {tried}; is {URL_VARIABLE} right?"
            )
        return ChatError(f"{self._endpoint}: {self._hide(one_line(str(error)))}")

    def _read(self, raw: str) -> Answer:
        """Read the answer in a response, and check every part of it."""
        try:
            body = json.loads(raw)
            choice = body["choices"][0]
            message = choice["message"]
            content, refusal = message.get("content"), message.get("refusal")
            finish = choice.get("finish_reason")
            usage = body.get("usage")
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            said = one_line(raw, 120)
            raise ChatError(
                f"{self._endpoint} does not answer with a chat completion: {said!r}; is "
                f"{URL_VARIABLE} right?",
                raw,
            ) from None
        if finish == "content_filter":
            refusal = refusal or "the endpoint's content filter stopped the answer"
        return Answer(
            text=_encodable(_text(content)),
            raw=raw,
            cut_off=finish == "length",
            refusal=refusal if isinstance(refusal, str) and refusal else None,
            usage=_usage(usage),
        )


def _origin(url: str) -> str:
    """Return the scheme, host and port of an address, without a name or password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an address begins with http:// or https:// and a host")
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _asked_to_wait(headers: httpx2.Headers) -> str:
    """Describe how long an endpoint asks to wait after too many requests."""
    asked = one_line(headers.get("retry-after", ""), 60)
    return f"; it asks to wait: Retry-After = {asked!r}" if asked else "; wait, or raise retries"


def _text(content: object) -> str:
    """Return the text of a message, which may come in parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _encodable(text: str) -> str:
    """Replace lone surrogates in the text, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _usage(values: object) -> Usage | None:
    """Return the tokens that a response states; None if they cannot be true."""
    if not isinstance(values, Mapping):
        return None
    counts = [values.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if any(type(count) is not int or not 0 <= count < 10**9 for count in counts):
        return None
    prompt, answer = counts
    return Usage(int(prompt or 0), int(answer or 0))


def _message(raw: str) -> str:
    """Return the message in an error's body, in any of the usual forms."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message", raw) if isinstance(error, dict) else error
    return str(said)
