"""Alerts sent to a web address, which never keep a prediction waiting."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from kit.files import CourseError, make_parent, write_json


class Webhook:
    """Send alerts as JSON to a URL, in the background; none is lost while the receiver
    is down.

    `send` stores the alert in a spool folder and returns. A thread posts the files in
    order and deletes what was taken, else it waits, twice as long after each failure,
    up to a minute. Files that a crash left behind are sent by the next Webhook on the
    folder. Delivery is at least once: a receiver tells repeats by `id`. `text` and
    `content` are what common chats show. An alert that the receiver refuses (400 to
    499) is put aside in rejected/."""

    def __init__(
        self, url: str, folder: str | Path, timeout: float = 5.0, pause: float = 0.5
    ):
        from urllib.parse import urlsplit

        try:
            whole = url.startswith(("http://", "https://")) and urlsplit(url).hostname
        except ValueError:
            whole = False
        if not whole:
            raise CourseError(
                f"Webhook URL {url!r}: give one that begins with http:// or https://"
                " and a host."
            )
        self.url, self.folder, self.timeout, self.pause = (
            url,
            Path(folder),
            timeout,
            pause,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()

    def send(self, event: dict) -> None:
        """Store the alert for delivery: a few ms, whatever the receiver does, and never
        an error.
        """
        name = f"{time.time_ns()}-{os.urandom(3).hex()}"  # sorts by time
        try:
            text = (
                f"{event.get('event')}: {event.get('rule')}, {event.get('metric')} ="
                f" {event.get('value')}"
            )
            write_json(
                self.folder / f"{name}.json",
                event | {"id": name, "text": text, "content": text},
            )
        except CourseError as error:
            print(
                f"Alert {event.get('rule')} could not be queued for the webhook:"
                f" {error}"
            )

    def pending(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))

    def close(self, timeout: float = 5.0) -> int:
        """Try once more, for `timeout` seconds at most; return how many alerts wait for
        the next Webhook.
        """
        self._closing.set()
        self._thread.join(timeout)
        return len(self.pending())

    def _deliver(self) -> None:
        wait = self.pause
        while True:
            last = self._closing.is_set()
            # stops at the first failure: order is kept
            delivered = all(self._post(path) for path in self.pending())
            if last:
                return
            wait = self.pause if delivered else min(2 * wait, 60)
            self._closing.wait(wait)

    def _post(self, path: Path) -> bool:
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import Request, urlopen

        try:
            request = Request(
                self.url, path.read_bytes(), {"Content-Type": "application/json"}
            )
            urlopen(request, timeout=self.timeout).close()
            path.unlink()
        except HTTPError as error:
            if not 400 <= error.code < 500 or error.code in (408, 429):
                return False
            os.replace(path, make_parent(self.folder / "rejected" / path.name))
            print(
                f"The receiver refuses an alert ({error.code} {error.reason}): kept in"
                f" {path.parent / 'rejected'}."
            )
        except (OSError, HTTPException):
            return False
        return True
