"""A client as cheap as can be, the same for every server: raw sockets, one selector, answers streamed from chat completions."""

import json
import re
import selectors
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

_TEXT = re.compile(rb'"content":\s*"')
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')
_PROMPT = re.compile(rb'"prompt_tokens":\s*(\d+)')
TIMEOUT_S = 300.0


@dataclass
class Answer:
    """What one request brought, times in seconds of `time.perf_counter`."""

    asked: float
    sock: socket.socket
    body: bytearray = field(default_factory=bytearray)
    seen: int = 0
    at: list[float] = field(default_factory=list)
    """When each piece of text came."""
    ended: float = 0.0

    @property
    def tokens(self) -> int:
        """As the server counts them; the one that ends an answer may or may not be among them."""
        return int(_USAGE.findall(self.body)[-1])

    @property
    def prompt_tokens(self) -> int:
        return int(_PROMPT.findall(self.body)[-1])

    @property
    def first_s(self) -> float:
        """From the request to the first text."""
        return self.at[0] - self.asked

    def text(self) -> str:
        events = (line[6:] for line in self.body.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data: {"))
        choices = (json.loads(event)["choices"] for event in events)
        return "".join(choice["delta"].get("content") or "" for found in choices for choice in found)

    def hear(self, data: bytes, now: float) -> None:
        self.body += data
        for match in _TEXT.finditer(self.body, self.seen):
            self.at.append(now)
            self.seen = match.end()
        if b"data: [DONE]" in self.body[-64:] or not data:
            self.ended = now


@dataclass(frozen=True)
class Server:
    """Where it listens, and what it wants to be told."""

    port: int
    model: str = "bench"
    secret: str = ""

    def ask(self, prompt: str, tokens: int) -> Answer:
        """Send a greedy request for exactly `tokens` tokens."""
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0,
                "max_tokens": tokens,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{self.port}\r\nContent-Type: application/json\r\n"
        key = f"Authorization: Bearer {self.secret}\r\n" if self.secret else ""
        sock = socket.create_connection(("127.0.0.1", self.port))
        asked = time.perf_counter()
        sock.sendall(f"{head}{key}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return Answer(asked=asked, sock=sock)


def gather(answers: Iterable[Answer]) -> list[Answer]:
    """Read until every one of `answers` has ended. Raises RuntimeError where a server answers otherwise."""
    every = list(answers)
    with selectors.DefaultSelector() as selector:
        for answer in every:
            selector.register(answer.sock, selectors.EVENT_READ, answer)
        while selector.get_map():
            ready = selector.select(TIMEOUT_S)
            if not ready:
                raise RuntimeError(f"nothing came for {TIMEOUT_S:.0f} s")
            for key, _ in ready:
                answer = key.data
                answer.hear(answer.sock.recv(1 << 16), time.perf_counter())
                if answer.ended:
                    selector.unregister(answer.sock)
                    answer.sock.close()
    for answer in every:
        if not answer.at or not _USAGE.search(answer.body):
            raise RuntimeError(f"no answer but: {bytes(answer.body[:500])!r}")
    return every
