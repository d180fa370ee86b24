"""A lock that is shared by readers and exclusive for a writer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Guard:
    """A lock for readers or one writer, which take turns if both wait.

    A thread that holds the lock for reading must not acquire it again, neither for reading nor for writing.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting_readers = 0
        self._waiting_writers = 0
        self._turn = 0  # number of waiting readers that are admitted before the next writer

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Holds the lock for reading: excludes writers."""
        with self._changed:
            self._waiting_readers += 1
            try:
                self._changed.wait_for(lambda: not self._writing and (self._turn or not self._waiting_writers))
                self._readers += 1
            finally:
                self._waiting_readers -= 1
                self._turn = min(max(self._turn - 1, 0), self._waiting_readers)
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the lock for writing: excludes readers and other writers."""
        with self._changed:
            self._waiting_writers += 1
            try:
                self._changed.wait_for(lambda: not self._writing and not self._readers and not self._turn)
            finally:
                self._waiting_writers -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._turn = self._waiting_readers
                self._changed.notify_all()
