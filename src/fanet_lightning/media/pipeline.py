"""Many images through a detector: reading, inference and writing overlap, in bounded memory.

Readers decode a few images ahead and writers draw and encode behind, in threads that yield to the network: decoders
and encoders let go of the interpreter, so what they do fits into the gaps that the network leaves. Nothing else is
shared between the threads; results are taken note of in the caller's thread, in the images' order.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fanet_lightning.data.images import Image8
from fanet_lightning.errors import InputError, first_line
from fanet_lightning.media.inputs import Item
from fanet_lightning.media.journal import Journal
from fanet_lightning.media.loading import Limits, Loaded, decoded, load
from fanet_lightning.media.outputs import Saving, entry_of, write_picture
from fanet_lightning.media.progress import Progress
from fanet_lightning.structures import Detections

# Images that are read, or being read, before their turn, for every reader.
AHEAD_PER_READER = 2
# What waits to be drawn and written: images for every writer, and bytes of pixels. An image beyond waits for those
# before it, and what a killed process loses is no more than these.
BEHIND_PER_WRITER = 2
MOST_BYTES_BEHIND = 256 * 2**20
_NICENESS = 10

FindFaces = Callable[[Image8], Detections]
"""(H, W, 3) uint8 RGB → faces in its pixels. An InputError is about this image alone."""


@dataclass
class Outcome:
    """What became of the images of a run, those done earlier not counted."""

    done: int = 0
    faces: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _Written:
    item: Item
    image_rgb: Image8
    found: Detections
    note: str
    files: "Future[list[str]]"


class ImagePipeline:
    """One run over many images.

    Args:
        find_faces: called in the caller's thread, one image at a time.
        out: folder of the results.
        saving: what is written of every image.
        journal: open; an image is added to it once its results are on disk.
        progress: told of every image, and of what cannot be read.
        limits: of downloads.
        workers: threads that read, and as many that write.
    """

    def __init__(
        self,
        find_faces: FindFaces,
        out: Path,
        saving: Saving,
        journal: Journal,
        progress: Progress,
        limits: Limits,
        workers: int = 2,
    ) -> None:
        self.outcome = Outcome()
        self._find_faces, self._out, self._saving = find_faces, out, saving
        self._journal, self._progress, self._limits, self._workers = journal, progress, limits, workers
        self._stop = threading.Event()
        self._ahead: deque[tuple[Item, Future[Loaded]]] = deque()
        self._behind: deque[_Written] = deque()

    def run(self, items: Sequence[Item]) -> Outcome:
        """Find the faces of every image.

        An image that cannot be read is told and counted, and the rest goes on. On Ctrl-C those whose faces are found
        are still written before KeyboardInterrupt goes on; ``outcome`` then says what was done.

        Raises:
            InputError: results cannot be written.
        """
        readers, writers = (
            ThreadPoolExecutor(self._workers, name, yield_to_the_network) for name in ("read-images", "write-images")
        )
        todo = deque(items)
        try:
            while todo or self._ahead:
                while todo and len(self._ahead) < self._workers * AHEAD_PER_READER:
                    item = todo.popleft()
                    self._ahead.append((item, readers.submit(load, item, self._limits, self._stop)))
                item, future = self._ahead.popleft()
                self._one(item, future, writers)
            self._settle(0)
        except KeyboardInterrupt:
            self._settle(0)
            raise
        finally:
            self._stop.set()
            for pool in (readers, writers):
                pool.shutdown(wait=False, cancel_futures=True)
        return self.outcome

    def _one(self, item: Item, future: "Future[Loaded]", writers: ThreadPoolExecutor) -> None:
        try:
            loaded = future.result()
            image_rgb = decoded(loaded, item)
            found = self._find_faces(image_rgb)
        except InputError as error:
            self._fail(item, error)
            return
        self._settle(BEHIND_PER_WRITER * self._workers - 1, MOST_BYTES_BEHIND - image_rgb.nbytes)
        if loaded.note:
            self._progress.say(f"{item.text}: {loaded.note} is used")
        files = writers.submit(write_picture, self._out, item, image_rgb, found, self._saving, loaded.profile)
        self._behind.append(_Written(item, image_rgb, found, loaded.note, files))

    def _settle(self, most: int, most_bytes: int = MOST_BYTES_BEHIND) -> None:
        """Take note of what has been written, and wait until no more than so many images and bytes are behind."""
        while self._behind:
            few = len(self._behind) <= most and self._bytes_behind() <= max(most_bytes, 0)
            if few and not self._behind[0].files.done():
                return
            written = self._behind[0]
            try:
                files = written.files.result()
            except InputError as error:
                self._behind.popleft()
                self._fail(written.item, error)
                continue
            except OSError as error:
                raise InputError(
                    f"out={self._out} cannot be written ({error.strerror or first_line(error)}); "
                    "free it, and the same command goes on"
                ) from error
            self._journal.add(written.item, entry_of(written.image_rgb, written.found, written.note, files))
            self._behind.popleft()
            self.outcome.done += 1
            self.outcome.faces += written.found.count
            self._progress.advance()

    def _bytes_behind(self) -> int:
        return sum(written.image_rgb.nbytes for written in self._behind)

    def _fail(self, item: Item, error: InputError) -> None:
        reason = " ".join(str(error).split())
        self.outcome.failed[item.name] = reason
        self._progress.say(f"error: {reason}")
        self._progress.advance()


def yield_to_the_network() -> None:
    """Lower the priority of this thread alone: on a busy machine it gets what the network's threads leave.

    The network's threads wait for one another, so one of them that loses its core to a decoder holds up all.
    """
    if sys.platform == "linux":  # elsewhere a priority is a process's, and this number is of none, or of another one
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
