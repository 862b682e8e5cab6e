"""A stand-in for kaggle.com on the loopback: what a download asks for, and faults on
order.
"""

import base64
import hashlib
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kit import download

KEY, TOKEN, SIGNATURE = "5ec3e7" + "0a" * 13, "KGAT" + "_" + "5ec3e7" * 5, "5ec3e751"
BASIC = "Basic " + base64.b64encode(f"student:{KEY}".encode()).decode()
DATE = "Wed, 01 Jan 2025 00:00:00 GMT"


class KaggleServer(ThreadingHTTPServer):
    """Serves one archive as Kaggle does: it answers credentials with 302 to a
    signed address of a storage.

    Attributes
    ----------
    api, storage : list
        What to do with the next requests of either kind instead of serving them, first
        first: a status, "html", "drop" (no answer at all),
        ("cut", n) (the body ends after n bytes), ("slow", event) (half of the body
        before the event is set), or None (serve it).
    asked : list of str
        Every request, as "ask" (Kaggle itself) or "GET bytes=100-" (its storage).
    ranges, checksum : bool, str
        Whether parts can be asked for; the x-goog-hash that is stated.
    """

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.api, self.storage, self.asked = content, [], [], []
        self.ranges = True
        self.checksum = (
            "crc32c=AAAAAA==, md5="
            + base64.b64encode(hashlib.md5(content).digest()).decode()
        )
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """A client that goes away in the middle is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path.startswith("/storage/"):
            self.server.asked.append(f"GET {self.headers.get('Range', 'all')}")
            return None if self.ordered(self.server.storage) else self.serve()
        self.server.asked.append("ask")
        if self.ordered(self.server.api):
            return None
        if self.headers.get("Authorization") not in (BASIC, f"Bearer {TOKEN}"):
            return self.answer(401)
        address = f"{self.server.url}/storage/archive.zip?X-Goog-Signature={SIGNATURE}"
        return self.answer(302, headers={"Location": address})

    def ordered(self, orders: list) -> bool:
        order = orders.pop(0) if orders else None
        match order:
            case None:
                return False
            case "drop":
                self.close_connection = True
            case "html":
                self.answer(
                    200,
                    b"<html>Please log in</html>",
                    {"Content-Type": "text/html; charset=utf-8"},
                )
            case "cut", length:
                self.serve(until=length)
            case "slow", event:
                self.serve(pause=event)
            case status:
                self.answer(status)
        return True

    def answer(self, status: int, content: bytes = b"", headers=()):
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            **dict(headers),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def serve(self, until=None, pause=None):
        content, start = self.server.content, 0
        if self.server.ranges and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return self.answer(416)
        self.send_response(206 if start else 200)
        headers = {
            "Content-Length": str(len(content) - start),
            "Content-Type": "application/zip",
            "ETag": '"1"',
            "Last-Modified": DATE,
            "x-goog-hash": self.server.checksum,
        }
        if self.server.ranges:
            headers |= {
                "Accept-Ranges": "bytes",
                "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
            }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if pause:
            self.wfile.write(content[start : len(content) // 2])
            pause.wait(20)
            start = len(content) // 2
        self.wfile.write(content[start:until])
        self.close_connection = True


@contextmanager
def serving(content: bytes):
    server = KaggleServer(content)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def point_client_at(url: str) -> None:
    """Let this process ask `url` instead of www.kaggle.com."""
    download.ADDRESS = url


def environment(home) -> dict[str, str]:
    """The variables of a user with this home folder and no Kaggle credentials."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KAGGLE_", "XDG_"))
    }
    return kept | {"HOME": str(home)}
