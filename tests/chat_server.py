"""A local OpenAI-compatible chat endpoint that behaves as a test wants, the fixture `serve` starts it."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """An OpenAI-compatible chat endpoint. `behave(text, attempt)` returns status, headers and the body's choice."""

    def __init__(self, behave):
        self.behave = behave
        self.requests: list[dict[str, Any]] = []
        self.attempts: Counter[str] = Counter()
        self.now = self.most = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                with server.lock:
                    server.requests.append({**body, "at": time.monotonic(), "key": self.headers["Authorization"]})
                    server.attempts[text] += 1
                    attempt = server.attempts[text]
                    server.now += 1
                    server.most = max(server.most, server.now)
                status, headers, choice = server.behave(text, attempt)
                with server.lock:
                    server.now -= 1
                reply: dict | str = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [choice],
                }
                if status != 200:
                    reply = {"error": {"message": choice}}
                content = choice.encode() if choice == "<html>" else json.dumps(reply).encode()
                self.send_response(status)
                for key, value in {
                    "Content-Type": "application/json",
                    "Content-Length": len(content),
                    **headers,
                }.items():
                    self.send_header(key, str(value))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def says(text: str, reason: str = "stop"):
    return 200, {}, {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
