"""A model server that says a few words, one each fifth of a second. Usage: replica.py PORT MODEL"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAUSE_S = 0.2


class Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    model = ""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._json({"object": "list", "data": [{"id": self.model, "object": "model", "max_model_len": 4096}]})
        else:
            self._json({}, status=200 if self.path == "/health" else 404)

    def do_POST(self) -> None:
        asked = json.loads(self._body())
        words = ["Hello", "from", self.model, "via", "app-proxy"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in words:
            delta = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
            self._event(
                json.dumps({"id": "c1", "object": "chat.completion.chunk", "model": asked.get("model"), "choices": [delta]})
            )
            time.sleep(PAUSE_S)
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _body(self) -> bytes:
        """The app proxy sends it in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.wfile.flush()

    def _json(self, said: object, *, status: int = 200) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Replica.model = sys.argv[2]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Replica).serve_forever()
