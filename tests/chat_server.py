"""A chat endpoint on this machine that says anything at all, as slowly as one likes."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class ChatServer(ThreadingHTTPServer):
    """Answers each request with the next of its replies, the last one for ever."""

    daemon_threads = True

    def __init__(self, *replies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.requests = list(replies), []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that hangs up is none of the tests' business."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.requests.append((self.path, self.headers, body))
        replies = server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        reply(self)

    def log_message(self, *_):
        pass

    def send(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(data)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def says(content, finish="stop", usage=(100, 50), **message):
    """A chat completion."""
    body = {
        "id": "x",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": usage and dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True)),
    }
    return lambda handler: handler.send(200, json.dumps(body))


def fails(status, body='{"error": {"message": "no"}}', **headers):
    """An error, or any other body."""
    names = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda handler: handler.send(status, body, names)


def ablation(part, *replacements, metrics=("return",), action="REPLACE", title="A study"):
    return {
        "title": title,
        "part": part,
        "action": action,
        "replacements": list(replacements),
        "metrics": list(metrics),
    }


def plan_of(*ablations, reasoning="Because."):
    return json.dumps({"reasoning": reasoning, "ablations": ablations})


GOOD = plan_of(ablation("pipeline training", "never"), ablation("optimizer structure", "linear"))


def silent(handler):
    time.sleep(1.5)


def trickle(status):
    def reply(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    return reply


def drip(handler):
    """Headers, a byte at a time."""
    with suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: yes\r\n" * 20:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.05)


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def servers(monkeypatch):
    """Start servers, to which the environment points, each instead of the one before."""
    started = []

    def start(*replies):
        server = ChatServer(*replies)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        started.append((server, thread))
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()
