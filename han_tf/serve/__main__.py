"""Serve a gallery: search by image over HTTP, with a page for the browser.

  python -m han_tf.serve --index DIR [--model DIR]

Prints the address when it is ready. Ctrl-C or SIGTERM stops it after the accepted requests have been answered.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Union

from han_tf.common import cli as command_line
from han_tf.common.errors import UserError
from han_tf.common.files import exists
from han_tf.serve.access import Access, read_token
from han_tf.serve.limits import Limits

DEFAULTS = Limits()

FLAGS = command_line.Flags()
FLAGS.group("gallery")
FLAGS.string("index", "", "The gallery: a folder, a Milvus Lite file or an address.")
FLAGS.repeated(
    "images", [], "Folder from which images may be shown, repeated for several; those of the gallery's images if empty."
)
FLAGS.string("state", "", "Folder for feedback and added images; INDEX.service if empty.")
FLAGS.group("model")
FLAGS.string("model", "", "Folder of a run or an export, or a network of the package; if empty, the one that fits.")
FLAGS.string("attention", "", "Run whose network draws attention overlays; the model's own if empty.")
FLAGS.string("runs_dir", "runs", "Where runs are kept.")
FLAGS.group("access")
FLAGS.string("host", "127.0.0.1", "Address to listen on.")
FLAGS.integer("port", 8000, "Port to listen on; 0 for any free one.", 0, 65535)
FLAGS.string(
    "token",
    "",
    "File with the token that clients must send; the variable HAN_TF_TOKEN if empty; no token if neither is set.",
)
FLAGS.boolean("read_only", False, "Refuse every change, verdicts included.")
FLAGS.strings(
    "allowed_hosts",
    [],
    "Names clients may call the service by; needed behind a proxy and for a --host of all addresses.",
)
FLAGS.group("computation")
FLAGS.integer("threads", None, "Threads of the network; one per core if not given.", 1)
FLAGS.define_white_level("that of the gallery's images")
FLAGS.group("limits")
FLAGS.real("max_upload_mb", DEFAULTS.upload_bytes / 2**20, "Largest request, MiB.", 0.01, 1024)
FLAGS.real("max_megapixels", DEFAULTS.pixels / 1e6, "Largest image, megapixels.", 0.01, 1000)
FLAGS.integer("max_k", DEFAULTS.max_k, "Most hits of a search.", 1, 10_000)
FLAGS.integer("batch", DEFAULTS.batch, "Most images per call of the network.", 1, 4096)
FLAGS.real("batch_wait_ms", DEFAULTS.batch_wait_ms, "How long an image waits for others, ms.", 0, 1000)
FLAGS.integer("queue", DEFAULTS.queue, "Most images, searches and changes that wait, each.", 1, 100_000)
FLAGS.integer("connections", DEFAULTS.connections, "Most open connections.", 1, 100_000)
FLAGS.integer("client_connections", DEFAULTS.client_connections, "Most open connections of one address.", 1, 100_000)
FLAGS.integer("bodies", DEFAULTS.bodies, "Most requests whose bodies are arriving.", 1, 100_000)
FLAGS.integer("requests", DEFAULTS.requests, "Most requests that are being answered.", 1, 100_000)
FLAGS.real("body_seconds", DEFAULTS.body_seconds, "Longest time for a body to arrive.", 0.1, 3600)
FLAGS.real("request_seconds", DEFAULTS.request_seconds, "Longest time for an answer.", 0.1, 3600)

FLAGS.require("index", "the gallery to serve: python -m han_tf.index makes one")

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def main(values: command_line.Flags) -> None:
    """Serves as the flags say, until a signal."""
    check_installed()
    from han_tf.serve.server import listen

    access = Access(read_token(values.token), values.read_only)
    limits = Limits(
        upload_bytes=int(values.max_upload_mb * 2**20),
        pixels=int(values.max_megapixels * 1e6),
        **{limit.name: values[limit.name].value for limit in fields(Limits) if limit.name in values},
    )
    state = values.state or state_folder(values.index)
    # First, so that a wrong address is reported before TensorFlow is loaded.
    with closing(listen(values.host, values.port)) as bound:
        address = ip_address(bound.getsockname()[0].partition("%")[0])
        hosts = allowed_hosts(values.host, address, values.allowed_hosts)
        if not address.is_loopback:
            print(f"warning: {exposed(str(address), access)}", file=sys.stderr, flush=True)
        from han_tf.search import open_gallery
        from han_tf.serve.running import address_of, open_service, serve, starting

        with starting():
            service = open_service(
                open_gallery(values.index, writable=not values.read_only),
                model=values.model or None,
                attention=values.attention or None,
                runs_dir=values.runs_dir,
                state=state,
                read_only=values.read_only,
                image_roots=values.images,
                threads=values.threads,
                white_level=values.white_level or None,
                limits=limits,
            )
        print(service.describe())
        ready = f"ready: {address_of(bound)} (Ctrl-C stops)"
        serve(service, bound, hosts, lambda: print(ready, flush=True), access=access)


Address = Union[IPv4Address, IPv6Address]


def allowed_hosts(host: str, address: Address, names: Sequence[str]) -> set[str]:
    """Returns the names that clients may use for the service.

    Args:
      host: the ``--host`` to listen on.
      address: the address that it was resolved to; ``0``, for example, means all addresses.
      names: further names.

    Raises:
      UserError: the service listens on all addresses, and no names are given.
    """
    if address.is_unspecified and not names:
        raise command_line.UsageError(
            f"--host {host or repr(host)} listens on every address of this machine, expected --allowed_hosts with the "
            "names that clients call it by"
        )
    own = () if address.is_unspecified else (host, str(address))
    local = LOOPBACK if address.is_loopback or address.is_unspecified else ()
    return {name.lower().strip("[]") for name in (*own, *local, *names)}


def exposed(address: str, access: Access) -> str:
    """Returns a warning for a service that other machines can reach."""
    allowed = "search" if access.read_only else "search, add and delete"
    who = "everybody who has the token" if access.token else "everybody who can reach it"
    advice = "" if access.token else "; --token FILE lets in only those who have it"
    return (
        f"listening on {address}, not on this machine alone: {who} may {allowed}{advice}. Nothing is encrypted: put a "
        "proxy with TLS before it"
    )


def state_folder(index: Union[str, Path]) -> str:
    """Returns the default folder for feedback and added images: beside the index, the same for all links to it.

    Raises:
      UserError: the index is at an address.
    """
    if "://" in str(index):
        from han_tf.search.address import Address  # its text form does not contain the password

        index = Address.of(index) or index
        raise command_line.UsageError(
            f"--index {index} is an address, expected --state with a folder for feedback and added images"
        )
    beside = f"{Path(index).absolute()}.service"
    # Earlier versions put the folder beside the link.
    return beside if exists(beside) else f"{Path(index).resolve()}.service"


def check_installed() -> None:
    """Raises UserError, with the command that installs it, if a package of the service is missing."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the service needs {error.name}, expected: pip install '.[serve]' in han-tf's folder"
        ) from error


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__))
