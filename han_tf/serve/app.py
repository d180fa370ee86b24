"""The HTTP interface of the service: routes, their documentation, and errors as JSON."""

import inspect
import re
from collections.abc import Collection, Sequence
from hashlib import sha256
from importlib import resources
from typing import Annotated, Any, Optional

from fastapi import Depends, FastAPI, File, Form, Path, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from han_tf import __version__
from han_tf.search import Filters
from han_tf.serve import schemas
from han_tf.serve.access import COOKIE, Access
from han_tf.serve.attention import Kind
from han_tf.serve.guards import FAULT, App, Guard
from han_tf.serve.limits import Refusal
from han_tf.serve.pictures import Picture
from han_tf.serve.schemas import ID_LIMIT, NUMBER_LIMIT, TIMES
from han_tf.serve.service import LISTED, Service
from han_tf.serve.service import Query as SearchQuery

PAGE_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
"""Suffix of a file of the page -> its media type."""

HITS = 20
MOST_LISTED = 200
MOST_CAMERAS = 1000
MOST_ADDED = 64
NAME_LENGTH = 200
"""Default number of hits; most listed entries, cameras in a filter, and images added at once; characters of a name."""

DESCRIPTION = """
Search a gallery of person images by another image: which of them show the same person?

Images are JPEG, PNG, WebP or BMP. Distances are L2 distances of features. Hits beyond the threshold are listed and
marked `beyond`; if all are, the answer has `"known": false`: not in the gallery. Times are seconds since 1970 UTC.
Errors are `{"error": "one line"}`; 503 has `Retry-After`, unless images may have been added despite the error.
"""

Id = Annotated[int, Path(ge=0, le=ID_LIMIT, description="id of an entry of the gallery")]
Image = Annotated[UploadFile, File(description="JPEG, PNG, WebP or BMP")]
KindParameter = Annotated[Kind, Query(description="heat of soft attention, regions of hard attention, or both")]
Number = Annotated[int, Field(ge=-NUMBER_LIMIT, le=NUMBER_LIMIT)]
Camera = Annotated[int, Field(ge=-ID_LIMIT, le=ID_LIMIT)]
Time = Annotated[Optional[float], Form(**TIMES, description="seconds since 1970 UTC, years 1 to 9999, if known")]
OF_CAMERAS = {"max_length": MOST_CAMERAS, "description": "of these cameras only; empty for all"}
NOT_OF_CAMERAS = {"max_length": MOST_CAMERAS, "description": "without entries of these cameras"}
OF_PEOPLE = {"max_length": MOST_CAMERAS, "description": "of these people only; empty for all"}
BOUND = {**TIMES, "description": "`after <= time < before`, seconds since 1970 UTC"}
TAKEN = {**TIMES, "description": "`taken_after <= time < taken_before`, seconds since 1970 UTC"}


def _in_query(
    request: Request,
    cameras: Annotated[list[Camera], Query(**OF_CAMERAS)] = [],  # noqa: B006 - FastAPI copies it
    not_cameras: Annotated[list[Camera], Query(**NOT_OF_CAMERAS)] = [],  # noqa: B006
    pids: Annotated[list[Camera], Query(**OF_PEOPLE)] = [],  # noqa: B006
    taken_after: Annotated[Optional[float], Query(**TAKEN)] = None,
    taken_before: Annotated[Optional[float], Query(**TAKEN)] = None,
) -> Filters:
    """Returns the filters in the address of a request."""
    others = () if request.method == "DELETE" else ("limit", "after")
    _check_names(request.query_params, QUERY_FILTERS, others)
    return _filters(cameras, not_cameras, taken_after, taken_before, pids, ("taken_after", "taken_before"))


async def _in_form(
    request: Request,
    cameras: Annotated[list[Camera], Form(**OF_CAMERAS)] = [],  # noqa: B006
    not_cameras: Annotated[list[Camera], Form(**NOT_OF_CAMERAS)] = [],  # noqa: B006
    after: Annotated[Optional[float], Form(**BOUND)] = None,
    before: Annotated[Optional[float], Form(**BOUND)] = None,
    pids: Annotated[list[Camera], Form(**OF_PEOPLE)] = [],  # noqa: B006
) -> Filters:
    """Returns the filters in the form of a search."""
    if request.query_params:
        raise Refusal(422, f"{_shown(min(request.query_params))} is in the address, expected all fields in the form")
    _check_names(await request.form(), FORM_FILTERS, ("image", "id", "k", "threshold", "rerank"))
    return _filters(cameras, not_cameras, after, before, pids)


def _takes(*names: str) -> Any:
    """Returns a dependency that refuses other fields than ``names`` in the form: a misspelt label would be lost."""

    async def check(request: Request) -> None:
        unknown = {*await request.form(), *request.query_params}.difference(names)
        if unknown:
            raise Refusal(422, f"{_shown(min(unknown))} is no field of the form, expected {', '.join(names)}")

    return Depends(check)


QUERY_FILTERS, FORM_FILTERS = ([*inspect.signature(function).parameters][1:] for function in (_in_query, _in_form))


def _responses(*statuses: int) -> dict[int, dict[str, Any]]:
    texts = {
        400: "The body is not a valid form.",
        401: "The token is missing or wrong.",
        403: "Sent by a page of another site, or the service is read-only.",
        404: "Not found.",
        408: "The body arrived too slowly.",
        409: "Too many are stored already.",
        413: "Too many bytes or pixels.",
        415: "Not an image, or in another format.",
        421: "The request is for another host.",
        422: "A value is missing or not valid.",
        503: "Overloaded, too slow, or the gallery cannot be reached; try again after `Retry-After` seconds.",
    }
    return {status: {"model": schemas.Error, "description": texts[status]} for status in (*statuses, 401, 421, 503)}


READS = _responses(422)
READS_ENTRY = _responses(404, 422)
UPLOADS = _responses(400, 403, 408, 413, 415, 422)
WRITES = _responses(400, 403, 408, 413, 422)


def _file(media_type: str, responses: dict[int, dict[str, Any]], description: str = "The image.") -> dict[str, Any]:
    """Returns the options of a route that returns a file."""
    schema = {"type": "string"}
    if media_type.startswith("image/"):
        schema["contentMediaType"] = media_type
    answer = {200: {"description": description, "content": {media_type: {"schema": schema}}}}
    return {"responses": responses | answer, "response_class": Response}


def create_app(service: Service, access: Access = Access()) -> FastAPI:  # noqa: B008 - frozen
    """Returns the application with the routes of ``service``, without the checks of :func:`guarded`."""
    limits = service.limits
    # The guard holds the whole body in memory; larger values would be written to a temporary file again.
    MultiPartParser.spool_max_size = max(MultiPartParser.spool_max_size, limits.upload_bytes + 1)
    levels = service.attention.levels if service.attention else 1
    LevelParameter = Annotated[int, Query(ge=1, le=levels, description="level of the network, from 1")]

    app = FastAPI(
        title="han-tf",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's page loads scripts from another site; /docs is a page of our own
        redoc_url=None,
        redirect_slashes=False,
        openapi_tags=[
            {"name": "search", "description": "Features of images, and searches."},
            {"name": "gallery", "description": "The images that are searched."},
            {"name": "feedback", "description": "Verdicts on hits."},
            {"name": "page", "description": "Further routes that the page uses."},
            {"name": "operation", "description": "For the operator of the service."},
        ],
    )
    _add_errors(app)

    async def picture_of(image: UploadFile) -> Picture:
        return await service.pictures.read(await image.read())

    @app.post("/embed", tags=["search"], responses=UPLOADS)
    async def embed(image: Image) -> schemas.Embedding:
        """Returns the feature of an image."""
        picture = await picture_of(image)
        feature = await service.embed(picture)
        return schemas.Embedding(feature=feature.tolist(), model=service.extractor.checksum, sha256=picture.sha256)

    @app.post("/search", tags=["search"], responses={**UPLOADS, **_responses(404)})
    async def search(
        filters: Annotated[Filters, Depends(_in_form)],
        image: Annotated[Optional[UploadFile], File(description="what to search for; or give `id`")] = None,
        id: Annotated[
            Optional[int], Form(ge=0, le=ID_LIMIT, description="an entry to search for; or give `image`")
        ] = None,
        k: Annotated[int, Form(ge=1, le=limits.max_k, description="most hits")] = min(HITS, limits.max_k),
        threshold: Annotated[
            Optional[float],
            Form(ge=0, le=1e6, allow_inf_nan=False, description="L2 distance; the gallery's own if not given"),
        ] = None,
        rerank: Annotated[bool, Form(description="sort the nearest anew by k-reciprocal re-ranking")] = False,
    ) -> schemas.SearchResult:
        """Finds the entries that are most similar to an image, or to another entry.

        An entry that is searched for is not among its own hits. Entries of unknown time are left out if `after` or
        `before` is given, those of unknown camera if `cameras` is given, those of unknown person if `pids` is given.
        """
        if (image is None) == (id is None):
            given = "both image and id" if image else "neither image nor id"
            raise Refusal(422, f"{given} given, expected one of them")
        if image is not None:
            picture = await picture_of(image)
            query = SearchQuery(f"sha256:{picture.sha256}", await service.embed(picture))
        else:
            query = SearchQuery(f"id:{id}", id=id)
        return await service.ask(service.search, query, k, filters, threshold, rerank)

    labels = ("pid", "camid", "time")

    @app.post(
        "/gallery",
        tags=["gallery"],
        status_code=201,
        responses=UPLOADS,
        dependencies=[_takes("image", *labels, "name")],
    )
    async def add(
        image: Image,
        pid: Annotated[Optional[Number], Form(description="person, if known")] = None,
        camid: Annotated[Optional[Number], Form(description="camera, if known")] = None,
        time: Time = None,
        name: Annotated[
            str, Form(max_length=NAME_LENGTH, description="name of the image; the file's name if not given")
        ] = "",
    ) -> schemas.Added:
        """Adds an image. Its copy and its entry are on disk when the answer is sent."""
        picture = await service.pictures.read(await image.read(), to_keep=True)
        (id,) = await service.add(
            [picture], [_printable(name)[:NAME_LENGTH] or _called(image.filename)], pid, camid, time
        )
        return schemas.Added(id=id)

    @app.post(
        "/gallery/batch",
        tags=["gallery"],
        status_code=201,
        responses=UPLOADS,
        dependencies=[_takes("images", *labels)],
    )
    async def add_many(
        images: Annotated[
            list[UploadFile], File(min_length=1, max_length=MOST_ADDED, description="JPEG, PNG, WebP or BMP each")
        ],
        pid: Annotated[Optional[Number], Form(description="person on all images, if known")] = None,
        camid: Annotated[Optional[Number], Form(description="camera of all images, if known")] = None,
        time: Time = None,
    ) -> schemas.AddedMany:
        """Adds images, all of them or none. Their copies and entries are on disk when the answer is sent."""
        pictures = []
        for number, image in enumerate(images):
            try:
                pictures.append(await service.pictures.read(await image.read(), to_keep=True))
            except Refusal as error:
                raise Refusal(error.status, f"{_called(image.filename) or f'image {number}'}: {error}") from error
        names = [_called(image.filename) for image in images]
        return schemas.AddedMany(ids=await service.add(pictures, names, pid, camid, time))

    @app.get("/gallery", tags=["gallery"], responses=READS)
    async def list_entries(
        filters: Annotated[Filters, Depends(_in_query)],
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="most entries")] = LISTED,
        after: Annotated[
            Optional[int], Query(ge=-1, le=ID_LIMIT, description="only greater ids, ascending; -1 for the first page")
        ] = None,
    ) -> schemas.Page:
        """Returns a sample of the entries; with `after` or a filter, all that pass, page by page, and their number."""
        if after is None and not filters:
            return schemas.Page(
                entries=await service.ask(service.sample, limit),
                next=None,
                total=await service.ask(service.gallery.count, filters),
            )
        entries = await service.ask(service.page, limit, -1 if after is None else after, filters)
        following = entries[-1].id if len(entries) == limit else None
        return schemas.Page(entries=entries, next=following, total=await service.ask(service.gallery.count, filters))

    @app.delete("/gallery", tags=["gallery"], responses=WRITES)
    async def delete_where(filters: Annotated[Filters, Depends(_in_query)]) -> schemas.DeletedMany:
        """Deletes the entries that pass the filters, and the copies of their images if this service added them."""
        if not filters:
            raise Refusal(422, f"no filter given, expected {', '.join(QUERY_FILTERS)}")
        return schemas.DeletedMany(deleted=await service.change(service.delete_where, filters))

    @app.get("/gallery/{id}", tags=["gallery"], responses=READS_ENTRY)
    async def entry(id: Id) -> schemas.EntryOut:
        """Returns the labels of an entry."""
        return await service.ask(service.entry, id)

    @app.patch("/gallery/{id}", tags=["gallery"], responses=WRITES | _responses(404))
    async def correct(id: Id, given: schemas.Correction) -> schemas.EntryOut:
        """Changes the labels of an entry: person, camera, time. They are on disk when the answer is sent."""
        changes = given.model_dump(exclude_unset=True)
        if not changes:
            raise Refusal(422, "nothing to change, expected pid, camid or time")
        return await service.change(service.correct, id, changes)

    @app.post("/compact", tags=["operation"], responses=_responses(403))
    async def compact() -> schemas.Compacted:
        """Frees the space of deleted entries; searches go on meanwhile."""
        await service.change(service.gallery.compact)
        return schemas.Compacted(entries=await service.ask(service.gallery.count))

    @app.delete("/gallery/{id}", tags=["gallery"], responses=WRITES | _responses(404))
    async def delete(id: Id) -> schemas.Deleted:
        """Deletes an entry, and the copy of its image if this service added it."""
        await service.change(service.delete, id)
        return schemas.Deleted(id=id)

    @app.get("/gallery/{id}/image", tags=["gallery"], **_file("image/jpeg", READS_ENTRY))
    async def image(id: Id) -> Response:
        """Returns the image of an entry as JPEG, upright, without metadata; a large image is shrunk."""
        return Response(await service.shown_image(id), media_type="image/jpeg", headers=_CACHED)

    @app.get("/gallery/{id}/attention", tags=["page"], **_file("image/png", READS_ENTRY))
    async def entry_attention(id: Id, kind: KindParameter = "both", level: LevelParameter = 1) -> Response:
        """Returns the image of an entry with the network's attention drawn over it."""
        return Response(await service.overlay_of_entry(id, kind, level), media_type="image/png", headers=_CACHED)

    @app.post("/attention", tags=["page"], **_file("image/png", UPLOADS | _responses(404)))
    async def picture_attention(image: Image, kind: KindParameter = "both", level: LevelParameter = 1) -> Response:
        """Returns an image with the network's attention drawn over it."""
        overlay = await service.overlay_of_picture(await picture_of(image), kind, level)
        return Response(overlay, media_type="image/png")

    @app.post("/feedback", tags=["feedback"], responses=WRITES | _responses(404, 409))
    async def feedback(given: schemas.Feedback) -> schemas.Marked:
        """Stores a verdict: whether a hit of a query shows the same person. A later verdict replaces an earlier one."""
        when = await service.change(service.mark, given.query, given.hit, given.verdict, given.distance)
        return schemas.Marked(query=given.query, hit=given.hit, verdict=given.verdict, time=when)

    @app.get(
        "/feedback.csv", tags=["feedback"], **_file("text/csv", _responses(), "One line per verdict, oldest first.")
    )
    async def export() -> Response:
        """Returns all verdicts: time, query, hit, verdict, distance and the file name of the hit's image."""
        headers = {"Content-Disposition": 'attachment; filename="feedback.csv"'}
        return Response(await service.ask(service.store.export), media_type="text/csv; charset=utf-8", headers=headers)

    @app.get("/overview", tags=["page"], responses=_responses())
    async def overview() -> schemas.Overview:
        """Returns facts about the service, for the page."""
        attention = service.attention
        return schemas.Overview(
            entries=await service.check(),
            cameras=service.cameras,
            threshold=service.gallery.threshold,
            max_k=limits.max_k,
            upload_bytes=limits.upload_bytes,
            pixels=limits.pixels,
            levels=attention.levels if attention else 0,
            attention=list(attention.kinds) if attention else [],
            verdicts=await service.ask(service.store.count),
            read_only=access.read_only,
            dimension=service.gallery.dimension,
            model=service.gallery.checksum,
        )

    @app.get("/examples", tags=["page"], responses=_responses())
    async def examples() -> list[schemas.Example]:
        """Returns example queries; only the demo has any."""
        return [schemas.Example(number=n, title=example.title) for n, example in enumerate(service.examples)]

    @app.get("/examples/{number}/image", tags=["page"], **_file("image/png", READS_ENTRY))
    async def example_image(number: Annotated[int, Path(ge=0, le=10_000)]) -> Response:
        """Returns the image of an example."""
        return Response(await service.example_image(number), media_type="image/png", headers=_CACHED)

    @app.get("/healthz", tags=["operation"], responses=_responses())
    async def healthz() -> schemas.Health:
        """Returns 200 if the service can answer; 503 if the gallery cannot be read or a queue is full."""
        return schemas.Health(status="ok", entries=await service.check(), model=service.extractor.checksum)

    text = _file(CONTENT_TYPE_LATEST.split(";")[0], _responses(), "Prometheus' text format.")

    @app.get("/metrics", tags=["operation"], **text)
    async def metrics() -> Response:
        """Returns counts and times for Prometheus."""
        return Response(await service.measure(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.post("/login", include_in_schema=False)
    async def login(given: schemas.Login, request: Request) -> Response:
        """Sets a cookie that replaces the token: a browser cannot send the token's header when it loads images."""
        if access.token and not access.is_token(given.token.encode()):
            raise Refusal(401, "this is not the service's token")
        response = Response(status_code=204)
        behind_tls = request.headers.get("origin", "").startswith("https:")
        response.set_cookie(COOKIE, access.cookie, httponly=True, samesite="strict", secure=behind_tls)
        return response

    _add_page(app)
    _describe_forms(app)
    return app


_CACHED = {"Cache-Control": "private, max-age=300"}
"""Images of entries never change, but browsers should soon forget those of deleted entries."""


def guarded(app: App, service: Service, hosts: Collection[str], access: Access = Access()) -> App:  # noqa: B008
    """Returns ``app`` behind the checks of :mod:`han_tf.serve.guards`, with its requests counted and timed.

    Args:
      app: of :func:`create_app`.
      service: its limits and metrics are used.
      hosts: names of the service.
      access: who may do what.
    """

    refused = lambda status: service.metrics.refused.labels(status).inc()  # noqa: E731
    return Guard(service.metrics.measured(app), service.limits, hosts, refused, access)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refuse(_: Request, error: Refusal) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        reasons = {404: "there is nothing here", 405: "this cannot be done here"}
        return JSONResponse(
            {"error": reasons.get(error.status_code, str(error.detail))}, error.status_code, error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": "; ".join(map(_sentence, error.errors()[:3]))}, 422)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again after this answer; the guard prints it.
        return JSONResponse({"error": FAULT}, 500)


def _check_names(given: Collection[str], filters: Sequence[str], others: Sequence[str]) -> None:
    """Raises Refusal if a name is misspelt: without the filter that it stands for, too many entries would pass."""
    unknown = {*given}.difference(filters, others)
    if unknown:
        raise Refusal(422, f"{_shown(min(unknown))} is no filter, expected {', '.join(filters)}")


def _shown(name: str) -> str:
    """Returns a name that a client gave, for a message."""
    return _printable(name)[:NAME_LENGTH]


def _filters(
    cameras: list[int],
    not_cameras: list[int],
    after: Optional[float],
    before: Optional[float],
    pids: list[int],
    names: tuple[str, str] = ("after", "before"),
) -> Filters:
    if after is not None and before is not None and after >= before:
        first, second = names
        raise Refusal(422, f"{first} is {after:.15g} and {second} {before:.15g}, expected {first} < {second}")
    return Filters(tuple(cameras), tuple(not_cameras), after, before, tuple(pids))


def _sentence(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path")) or "request"
    value = error.get("input")
    shown = f" is {str(value)[:60]!r}" if isinstance(value, (str, int, float)) else ""
    return _printable(f"{place}{shown}: {error['msg'][:1].lower()}{error['msg'][1:]}")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _called(name: Optional[str]) -> str:
    return _printable(re.split(r"[/\\]", name or "")[-1])[:NAME_LENGTH]


def _describe_forms(app: FastAPI) -> None:
    """Removes ``null`` from the description of forms: a field of a form can be left out, but not be null."""
    for schema in app.openapi()["components"]["schemas"].values():
        for field in schema["properties"].values() if schema["title"].startswith("Body_") else ():
            choices = [choice for choice in field.pop("anyOf", ()) if choice != {"type": "null"}]
            for choice in choices:
                field.update(choice)


def _add_page(app: FastAPI) -> None:
    folder = resources.files("han_tf.serve") / "page"
    # Read at the start, so that no part of a request is used as a path.
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    tags = {name: f'"{sha256(data).hexdigest()[:32]}"' for name, data in files.items()}

    def serve(name: str, request: Request) -> Response:
        headers = {"ETag": tags[name], "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], headers=headers, media_type=PAGE_TYPES[name.rpartition(".")[2]])

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return serve("index.html", request)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return serve("docs.html", request)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise Refusal(404, "there is nothing here")
        return serve(name, request)
