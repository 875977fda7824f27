"""How many pixels the processes of one machine work on at the same time."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flashray.errors import FlashrayError, ImageError
from flashray.memory import give_back_freed_memory, machine_memory

PIXEL_BYTES = 250  # of memory that a pixel of a large photo takes at most (docs/results/any-size.md)
WHOLE_ROWS = 1600  # of the tallest strip of the severity encoder; photos of so few take twice as much a pixel
MEGAPIXEL = 2**20
_SHARE = 0.5  # of the machine's memory that large photos may take; models and small photos take the rest
_WAIT = 0.05  # seconds between two looks


class PixelBudget:
    """Megapixels that processes of this machine may have in flight together, whichever run they belong to.

    A megapixel is a locked file in `folder`, one that all processes of the user on this machine share. The kernel frees
    the locks of a process that ends, however it ends. `memory` is this machine's, in bytes.
    """

    def __init__(self, memory: int | None = None, folder: Path | None = None) -> None:
        self.memory = memory or machine_memory()
        self.megapixels = max(1, int(_SHARE * self.memory) // (PIXEL_BYTES * MEGAPIXEL))
        self.folder = folder or shared_folder()

    def check(self, width: int, height: int) -> None:
        """Refuse an image that this machine cannot hold even alone; the ImageError names the memory that it needs."""
        needed = PIXEL_BYTES * counted_pixels(width, height)
        if needed > self.memory:
            raise ImageError(
                f"{width * height / 1e6:.0f} megapixels need about {needed / 1e9:.0f} GB of memory, and this "
                f"machine has {self.memory / 1e9:.0f}; use a larger one, or make the image smaller"
            )

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for an image of so many `counted_pixels`, and hold it meanwhile.

        An image of less than a megapixel waits for nobody. One that is larger than the budget waits until it is alone.
        """
        wanted = min(pixels // MEGAPIXEL, self.megapixels)
        with ExitStack() as held:
            if wanted:
                with self._locked("turn"):  # one process gathers at a time, so that two never wait for each other
                    self._gather(wanted, held)
            yield
            if wanted:
                give_back_freed_memory()

    def _gather(self, wanted: int, held: ExitStack) -> None:
        free = list(range(self.megapixels))
        while wanted:
            for number in list(free):
                try:
                    held.enter_context(self._locked(f"{number}", fcntl.LOCK_NB))
                except BlockingIOError:
                    continue
                free.remove(number)
                wanted -= 1
                if not wanted:
                    return
            time.sleep(_WAIT)

    @contextmanager
    def _locked(self, name: str, how: int = 0) -> Iterator[None]:
        with open(self.folder / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | how)
            yield


def counted_pixels(width: int, height: int) -> int:
    """The pixels of an image, counted by the memory that they take: low images run whole, tall ones in strips."""
    return width * max(height, 2 * min(height, WHOLE_ROWS))


def shared_folder() -> Path:
    """A folder of this machine that only this user can write; FlashrayError if somebody else made it first."""
    folder = Path(tempfile.gettempdir(), f"flashray-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise FlashrayError(f"{folder} is not a folder that only this user can write; delete it, or set TMPDIR")
    return folder
