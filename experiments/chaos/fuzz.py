"""Damaged inputs of every kind that is read: an answer, or one line of error, in bounded time and memory."""

import io
import json
import os
import re
import shutil
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.bench_service import form, make_picture
from experiments.chaos import process
from experiments.chaos.kills import MODEL, extract_features
from experiments.chaos.process import Fault, result_of, start, wait
from experiments.chaos.service import port_of, start_service
from han_tf.common.errors import UserError
from han_tf.common.files import write_json, write_npz
from han_tf.data import load_dataset
from han_tf.data.image_lists import list_images
from han_tf.data.reading import ImageReader
from han_tf.features.archives import load_features
from han_tf.features.shards import FeatureShards
from han_tf.runs.card import CARD, hash_files, read_card, verify_files
from han_tf.search import create_gallery, open_gallery
from han_tf.serve.images import decode_upload
from han_tf.serve.limits import Limits, Refusal

SECONDS = 30
"""One input may take; more is a hang."""

ANSWER_SECONDS = 2
"""How long a request's answer is waited for: the head of a damaged one may have no end."""

MEMORY_BYTES = 2**30
"""Reading may take beyond what its process had at first."""


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
      name: what it is called.
      share: of all inputs.
      make: writes valid ones into a folder, each a file or a folder of its own.
      read: reads one of them.
    """

    name: str
    share: float
    make: Callable[[Path], None]
    read: Callable[[Path], None]


def damage(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Flips bytes, cuts off, cuts out, repeats, overwrites with zeros or ones, or takes over a piece of ``other``."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, length = int(rng.integers(len(changed) + 1)), int(2 ** rng.uniform(0, 10))
        step = rng.choice(["flip", "flip", "head", "cut", "remove", "repeat", "fill", "splice"])
        if step in ("flip", "head"):
            most = min(len(changed), 256) if step == "head" else len(changed)
            for place in rng.integers(most, size=min(most, int(rng.integers(1, 9)))):
                changed[place] = rng.integers(256)
        elif step == "cut":
            del changed[at:]
        elif step == "remove":
            del changed[at : at + length]
        elif step == "repeat":
            changed[at:at] = changed[at : at + length]
        elif step == "fill":
            changed[at : at + length] = bytes([rng.choice([0, 255])]) * len(changed[at : at + length])
        else:
            there = int(rng.integers(len(other) + 1))
            changed[at : at + length] = other[there : there + length]
    return bytes(changed)


def fuzz(root: Path, inputs: int, seed: int, kept: str) -> Iterator[dict[str, Any]]:
    """Yields what happened with the damaged inputs of each kind, then with HTTP requests."""
    kinds = _kinds(root)
    for number, kind in enumerate(kinds):
        samples = root / "samples" / kind.name
        samples.mkdir(parents=True)
        result_of(partial(kind.make, samples), root / "log")
        yield _read_damaged(kind, samples, root, round(inputs * kind.share), [seed, number], kept)
    yield _ask_damaged(root, round(inputs * (1 - sum(kind.share for kind in kinds))), seed)


def _read_damaged(kind: Kind, samples: Path, root: Path, inputs: int, seed: list[int], kept: str) -> dict[str, Any]:
    log, progress = root / "log", root / "progress"
    counts: Counter[str] = Counter()
    faults: list[str] = []
    begun, first = time.monotonic(), 0
    while first < inputs:
        progress.write_text("")
        child = start(
            partial(_read_many, kind, samples, root / "damaged", range(first, inputs), seed, progress), log, log
        )
        size, changed = 0, time.monotonic()
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if progress.stat().st_size != size:
                size, changed = progress.stat().st_size, time.monotonic()
            if time.monotonic() > changed + (SECONDS if size else 4 * SECONDS):
                os.kill(child, signal.SIGKILL)
                break
            time.sleep(0.01)
        ended = wait(child, log)
        lines = progress.read_text().splitlines()
        for line in lines:
            what, _, rest = line.partition(" ")
            counts[what] += 1
            faults += [f"{kind.name} {rest}"] if what == "fault" else []
        first += len(lines)
        if first < inputs:
            what = "hang" if ended.status == -signal.SIGKILL else f"status {ended.status}"
            faults.append(f"{kind.name} {first} of seed {seed}: {what}: {ended.said[-1500:]}")
            if kept:
                shutil.copytree(root / "damaged", Path(kept) / f"{kind.name}-{first}", dirs_exist_ok=True)
            first += 1
    return {
        "case": kind.name,
        "inputs": inputs,
        **{what: counts[what] for what in ("read", "refused")},
        "peak_mb": max((int(line.split()[-1]) for line in lines), default=0),
        "seconds": time.monotonic() - begun,
        "faults": faults,
    }


def _read_many(kind: Kind, samples: Path, damaged: Path, numbers: range, seed: list[int], progress: Path) -> None:
    """Reads damaged copies and writes a line about each: read, refused or fault, and MiB of memory at most."""
    chosen = sorted(samples.iterdir())
    # What is imported or built once is no input's memory. A copy, since reading may write beside what is read.
    kind.read(_copy(chosen[0], damaged))
    before = process.memory_bytes("VmRSS")
    process.bound_memory(MEMORY_BYTES)
    with progress.open("a", buffering=1) as lines:
        for number in numbers:
            rng = np.random.default_rng([*seed, number])
            sample, other = (chosen[int(place)] for place in rng.integers(len(chosen), size=2))
            copy = _damaged_copy(sample, other, damaged, rng)
            what = "read"
            try:
                kind.read(copy)
            except UserError:
                what = "refused"
            except BaseException:
                said = " | ".join(traceback.format_exc().strip().splitlines()[-6:])
                what = f"fault {number} of seed {seed}: {said}"
            more = (process.memory_bytes("VmHWM") - before) >> 20
            lines.write(f"{what} {more}\n")


def _copy(sample: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy = folder / sample.name
    return Path(shutil.copy(sample, copy) if sample.is_file() else shutil.copytree(sample, copy))


def _damaged_copy(sample: Path, other: Path, folder: Path, rng: np.random.Generator) -> Path:
    copy = _copy(sample, folder)
    if sample.is_file():
        copy.write_bytes(damage(sample.read_bytes(), other.read_bytes(), rng))
        return copy
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    chosen, spliced = (files[int(place)] for place in rng.integers(len(files), size=2))
    chosen.write_bytes(damage(chosen.read_bytes(), spliced.read_bytes(), rng))
    return copy


def _kinds(root: Path) -> list[Kind]:
    return [
        Kind("images", 0.3, _make_images, _read_image),
        Kind("mats", 0.05, _make_mats, lambda path: load_dataset("cuhk03", path, "detected") and None),
        Kind("npz", 0.1, partial(_make_npz, root), lambda path: load_features(path) and None),
        Kind("parquet", 0.1, partial(_make_parquet, root), lambda path: [*FeatureShards(path)] and None),
        Kind("csv", 0.1, partial(_make_csv, root), _read_csv),
        Kind("checkpoints", 0.03, partial(_make_run, root), _read_run),
        Kind("weights", 0.02, _make_weights, _read_weights),
        Kind("cards", 0.1, partial(_make_card, root), lambda path: verify_files(path, read_card(path))),
        Kind("galleries", 0.1, _make_galleries, _read_gallery),
    ]


def _make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (48, 24, 3), np.uint8))
    for format in ("jpg", "png", "webp", "bmp", "tif", "gif"):
        pixels.save(folder / f"colour.{format}")
    pixels.save(folder / "progressive.jpg", progressive=True)
    pixels.convert("CMYK").save(folder / "cmyk.jpg")
    pixels.convert("P").save(folder / "palette.png")
    pixels.convert("1").save(folder / "fax.tif", compression="group4")
    pixels.save(folder / "lzw.tif", compression="tiff_lzw")
    pixels.save(folder / "jpeg.tif", compression="jpeg")
    pixels.save(folder / "frames.gif", save_all=True, append_images=[pixels.rotate(90)] * 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels.save(folder / "turned.jpg", exif=exif)
    for format in ("png", "tif"):
        Image.fromarray(rng.integers(0, 65_536, (48, 24), np.uint16)).save(folder / f"deep.{format}")
    Image.fromarray(rng.random((48, 24), np.float32)).save(folder / "float.tif")


def _read_image(path: Path) -> None:
    limits = Limits()
    try:
        decode_upload(path.read_bytes(), limits.pixels, of_file=bool(path.stat().st_size % 2))
    except Refusal as error:
        if error.status >= 500:
            raise
    list(ImageReader([path], (48, 32), skip_bad_images=True, threads=1))


def _make_mats(folder: Path) -> None:
    from han_tf.data.synthetic import SyntheticPedestrians, generate

    people = SyntheticPedestrians(
        train_identities=2, test_identities=2, train_images_per_camera=1, images_per_camera=2, distractors=0, junk=0
    )
    generate(folder / "cuhk03", people, layout="cuhk03")


def _make_npz(root: Path, folder: Path) -> None:
    features = load_features(root / "features.npz").where(np.arange(20))
    write_npz(folder / "plain.npz", **{**features._asdict(), "paths": features.paths.astype(str)})
    np.savez_compressed(folder / "compressed.npz", **{**features._asdict(), "paths": features.paths.astype(str)})


def _make_parquet(root: Path, folder: Path) -> None:
    extract_features(root / "exports" / MODEL, root / "data" / "query", folder / "features")


def _make_csv(root: Path, folder: Path) -> None:
    paths = sorted((root / "data" / "query").glob("*.jpg"))[:6]
    rows = [f"{path},{pid},{pid % 3},2026-03-01T08:30:0{pid}Z" for pid, path in enumerate(paths)]
    (folder / "list.csv").write_text("\n".join(["path,pid,camid,time", *rows, ""]))
    subsets = ["train", "train", "query", "query", "gallery", "gallery"]
    rows = [f"{path},{n % 2 + 1},{n},{subset}" for n, (path, subset) in enumerate(zip(paths, subsets))]
    (folder / "set.csv").write_text("\r\n".join(["path,pid,camid,subset", *rows, ""]))


def _read_csv(path: Path) -> None:
    if path.stem == "set":
        load_dataset("csv", path)
    else:
        list_images([str(path)])


def _make_run(root: Path, folder: Path) -> None:
    shutil.copytree(root / "run", folder / "run", ignore=shutil.ignore_patterns("*.png", "tensorboard", "events*"))


_MODELS: dict[str, Any] = {}


def _read_run(path: Path) -> None:
    """Does what :func:`han_tf.runs.folder.load_run` does, with one network for all that have the same settings."""
    from han_tf.runs.checkpoints import Checkpoints
    from han_tf.runs.folder import CHECKPOINTS, create_network, read_config

    config = read_config(path)
    known = repr(sorted(config.items(), key=str))
    if known not in _MODELS:
        if _MODELS:
            from han_tf.runs.folder import load_run

            load_run(path)
            return
        _MODELS[known] = create_network(config, config["num_classes"])
    Checkpoints(path / CHECKPOINTS["last"], 1, model=_MODELS[known]).restore(partial=True)


def _make_weights(folder: Path) -> None:
    from han_tf.weights import resolve

    shutil.copytree(resolve("han_small-synthetic"), folder / "stored")


def _read_weights(path: Path) -> None:
    from han_tf.runs.folder import read_config
    from han_tf.weights import read_arrays

    read_config(path)
    read_arrays(path)


def _make_card(root: Path, folder: Path) -> None:
    shutil.copytree(root / "exports" / MODEL, folder / "model")
    (folder / "model" / "model.onnx").write_bytes(b"a model")  # whose checksum is computed quickly
    card = json.loads((folder / "model" / CARD).read_text())
    write_json(folder / "model" / CARD, {**card, "files": hash_files(folder / "model")})


def _make_galleries(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for engine, dimension, rows in (("flat", 16, 50), ("hnsw", 8, 1200), ("ivfpq", 8, 1200)):
        with create_gallery(folder / engine, dimension, "a" * 64, engine) as gallery:
            features = rng.standard_normal((rows, dimension)).astype(np.float32)
            gallery.add(features, paths=[f"{n}.jpg" for n in range(rows)], camids=rng.integers(1, 4, rows).tolist())
            gallery.delete([3, 4])
            gallery.build()


def _read_gallery(path: Path) -> None:
    with open_gallery(path, writable=path.name == "ivfpq") as gallery:
        hits = gallery.search(np.ones((2, gallery.dimension), np.float32), 5)
        gallery.entries([hit.entry.id for hit in hits[0]])
        gallery.page(10)
        gallery.info()


def _requests() -> list[bytes]:
    """Returns valid requests of every kind."""
    jpeg = make_picture(0)
    png = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(png, "PNG")

    def request(method: str, path: str, body: bytes = b"", kind: str = "") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\n" * bool(body) + f"Content-Type: {kind}\r\n" * bool(kind)
        return f"{head}\r\n".encode() + body

    reads = ("/", "/healthz", "/metrics", "/overview", "/gallery", "/gallery?after=5&limit=3", "/gallery/1")
    reads += ("/gallery/1/image", "/feedback.csv", "/openapi.json", "/page/app.js", "/examples")
    json_type = "application/json"
    return [
        *(request("GET", path) for path in reads),
        *(
            request("POST", path, *form(picture))
            for picture in (jpeg, png.getvalue())
            for path in ("/embed", "/gallery")
        ),
        request("POST", "/search", *form(jpeg, k=5, cameras=1, threshold=1.5, rerank="true")),
        request("POST", "/search", *form(id=1, k=5, not_cameras=2, after=1e9)),
        request("POST", "/gallery", *form(jpeg, pid=4, camid=2, time=1.5e9, name="someone")),
        request("PATCH", "/gallery/1", b'{"pid": 3, "camid": null, "time": 1.5e9}', json_type),
        request("POST", "/feedback", b'{"query": "id:1", "hit": 2, "verdict": "right", "distance": 0.5}', json_type),
        request("DELETE", "/gallery/2"),
    ]


def _ask_damaged(root: Path, inputs: int, seed: int) -> dict[str, Any]:
    log, folder = root / "service.log", root / "asked"
    requests = _requests()
    service = start_service(root / "exports" / MODEL, folder, log, Fault(), f"--body_seconds={ANSWER_SECONDS / 2}")
    port = port_of(service, log)
    if port is None:
        return {"case": "http", "inputs": 0, "faults": [f"no service: {wait(service, log, 0).said}"]}
    for request in requests:
        _ask(port, request)
    before = process.memory_bytes("VmRSS", service)
    statuses: Counter[str] = Counter()
    faults: list[str] = []
    begun = time.monotonic()
    for number in range(inputs):
        rng = np.random.default_rng([seed, 100, number])
        valid, other = (requests[int(place)] for place in rng.integers(len(requests), size=2))
        status = _ask(port, _damaged_request(valid, other, rng))
        statuses[status] += 1
        if status not in ("2", "3", "4", "503", "closed", "waits"):
            faults.append(f"http {number} of seed {seed}: {status}")
    alive = _ask(port, requests[1])
    peak = process.memory_bytes("VmHWM", service) if alive == "2" else 0
    os.kill(service, signal.SIGTERM)
    ended = wait(service, log, 60)
    if alive != "2" or ended.status != -signal.SIGTERM or "Traceback" in ended.said or peak - before > MEMORY_BYTES:
        faults.append(f"http: {alive}, {ended.status}, {(peak - before) >> 20} MiB more: {ended.said}")
    return {
        "case": "http",
        "inputs": inputs,
        "read": statuses["2"] + statuses["3"],
        "refused": statuses["4"] + statuses["503"] + statuses["closed"] + statuses["waits"],
        "peak_mb": (peak - before) >> 20,
        "seconds": time.monotonic() - begun,
        "faults": faults,
    }


def _damaged_request(valid: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Damages a request, or its body alone: with a head that fits, more of them get past the door."""
    head, _, body = valid.partition(b"\r\n\r\n")
    if not body or rng.random() < 0.5:
        return damage(valid, other, rng)
    body = damage(body, other, rng)
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + b"\r\n\r\n" + body


def _ask(port: int, request: bytes) -> str:
    """Returns the first digit of the status, all of a 5xx; ``closed`` without one, ``waits`` where none comes."""
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as connection:
            with suppress(OSError):  # an answer may come before all is sent
                connection.sendall(request)
            answer = b""
            while part := connection.recv(2**16):
                answer += part
    except TimeoutError:
        return "waits"
    except OSError:
        return "closed"
    status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.") else "closed"
    return status if status[0] == "5" else "closed" if status == "closed" else status[0]
