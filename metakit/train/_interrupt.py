"""Ctrl-C that waits for a good moment."""

import signal
import threading
from types import FrameType


class DeferredInterrupt:
    """While active, the first Ctrl-C sets `requested`; only the second raises `KeyboardInterrupt`.

    Only the main thread can receive signals; in any other this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous = None
        self._active = False

    def __enter__(self) -> "DeferredInterrupt":
        # Only where Ctrl-C would raise KeyboardInterrupt: a host program's own handler is left in charge.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            if self._previous is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._handle)
                self._active = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._previous)
            self._active = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.default_int_handler(number, frame)
        self.requested = True
