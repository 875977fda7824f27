"""A thread that sends the events of a run to MLflow while the job goes on."""

from __future__ import annotations

import logging
import queue
import threading
import time

from flashray import storage
from flashray.tracking.client import brief
from flashray.tracking.sender import Sender

log = logging.getLogger(__name__)
_PAUSE = 2.0  # seconds until a failed attempt is repeated


class SendingThread:
    """Sends on request, and again after a pause where that failed; started at once.

    All calls of `wait` together take no more than `patience` seconds.
    """

    def __init__(self, sender: Sender, patience: float) -> None:
        self._sender, self._patience = sender, patience
        self._stop = threading.Event()
        self._requests: queue.Queue[threading.Event] = queue.Queue()  # each is set once an attempt was made
        threading.Thread(target=self._work, name="tracking", daemon=True).start()

    def request(self) -> threading.Event:
        """Ask for an attempt to send; the result is set once it was made."""
        tried = threading.Event()
        self._requests.put(tried)
        return tried

    def wait(self) -> None:
        """Wait until all is sent or an attempt failed, as long as the patience lasts."""
        if self._stop.is_set():
            return
        began = time.monotonic()
        self.request().wait(self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - began))

    def stop(self) -> None:
        """Send no more events."""
        self._stop.set()
        self.request()

    def _work(self) -> None:
        failed = False
        while True:
            requests = self._next_requests(_PAUSE if failed else None)
            if self._stop.is_set():
                return
            try:
                self._sender.send(self._stop)
                failed = False
            except Exception as error:
                if not failed:  # the first of a row
                    log.warning("tracking: %s (%s); the run continues", brief(error), storage.redact(self._sender.uri))
                failed = True
            for request in requests:
                request.set()

    def _next_requests(self, pause: float | None) -> list[threading.Event]:
        """Wait for a request, no longer than the pause; all that were made so far."""
        requests: list[threading.Event] = []
        try:
            requests.append(self._requests.get(timeout=pause))
            while True:
                requests.append(self._requests.get_nowait())
        except queue.Empty:
            return requests
