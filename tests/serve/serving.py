"""Helpers of the service's tests: a service on a socket, images as bytes."""

import contextlib
import io
import threading
import time

import httpx
import numpy as np
from PIL import Image

from han_tf.serve.running import address_of, serve
from han_tf.serve.server import listen

HOSTS = {"127.0.0.1", "localhost"}
FIRST_TIME = 1_772_440_000.0
"""Time of the gallery's first image; each further image is a minute later."""


@contextlib.contextmanager
def on_socket(service, **options):
    """The address of a service that runs in a thread; further options go to :func:`serve`."""
    bound, ready, servers = listen("127.0.0.1", 0), threading.Event(), []
    arguments = {"ready": ready.set, "started": servers.append, **options}
    thread = threading.Thread(target=serve, args=(service, bound, HOSTS), kwargs=arguments, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield address_of(bound)
    finally:
        servers[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def client_of(service, **options):
    """A client of a service that runs in a thread."""
    with on_socket(service, **options) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client


def wait_for(condition, seconds=20):
    """Returns the first true value of ``condition()``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def encoded(image, format="PNG", **options):
    """The bytes of an image file: of an array, or of one of Pillow's images."""
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format, **options)
    return stream.getvalue()


def noise(height=40, width=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
