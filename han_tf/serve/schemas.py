"""The JSON that the interface receives and returns, as OpenAPI describes it."""

from typing import Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field

from han_tf.data.image_lists import END_OF_TIME, FIRST_TIME
from han_tf.search import Entry

ID_LIMIT = 2**63 - 1
NUMBER_LIMIT = 2**53 - 1
"""Largest pid and camera in an addition or a correction: every JSON parser reads integers up to it exactly.

A gallery may hold larger ones; answers give all their digits."""

TIMES = {"ge": FIRST_TIME, "lt": END_OF_TIME, "allow_inf_nan": False}
"""Bounds of a time: the years 1 to 9999."""


class Error(BaseModel):
    """Why a request was refused, in one line."""

    error: str = Field(examples=["k is 0, expected 1 to 200"])


class Health(BaseModel):
    """Whether the service can answer."""

    status: Literal["ok"]
    entries: int = Field(description="images in the gallery")
    model: str = Field(description="checksum of the network, hex SHA-256")


class Embedding(BaseModel):
    """The feature of one image."""

    feature: list[float] = Field(description="the branches' parts side by side, each of unit norm")
    model: str = Field(description="checksum of the network; features of other networks cannot be compared")
    sha256: str = Field(description="of the uploaded bytes")


class EntryOut(BaseModel):
    """One image of the gallery."""

    id: int
    name: str = Field(description="file name, or the name that the client gave when it added the image; may be empty")
    pid: Optional[int] = Field(description="person, if known")
    camid: Optional[int] = Field(description="camera, if known")
    time: Optional[float] = Field(description="when it was taken, seconds since 1970 UTC, if known")

    @classmethod
    def of(cls, entry: Entry, name: str, **more: Any) -> "EntryOut":
        """Returns an object of this class: an entry with its name, and with the further fields of a subclass."""
        return cls(id=entry.id, name=name, pid=entry.pid, camid=entry.camid, time=entry.time, **more)


class HitOut(EntryOut):
    """A found entry."""

    distance: float = Field(description="L2 distance to the query's feature")
    beyond: bool = Field(description="farther than the threshold: shown, not claimed to be the same person")
    verdict: Optional[Literal["right", "wrong"]] = Field(description="the verdict on this hit of this query")


class SearchResult(BaseModel):
    """The nearest entries, nearest first (re-ranked: most likely first)."""

    query: str = Field(description="`sha256:…` of an uploaded image or `id:…`; feedback names it")
    known: Optional[bool] = Field(
        description="whether any hit is within the threshold; false means: not in the gallery. Null without a threshold"
    )
    threshold: Optional[float] = Field(description="largest L2 distance that counts as the same person")
    reranked: bool
    hits: list[HitOut]


class Added(BaseModel):
    """The new entry; it is on disk."""

    id: int


class AddedMany(BaseModel):
    """The new entries, in the order of the images; they are on disk."""

    ids: list[int]


class Correction(BaseModel):
    """New labels of an entry; labels that are left out stay, null means: not known."""

    model_config = ConfigDict(extra="forbid")

    pid: Optional[int] = Field(default=None, ge=-NUMBER_LIMIT, le=NUMBER_LIMIT, description="person")
    camid: Optional[int] = Field(default=None, ge=-NUMBER_LIMIT, le=NUMBER_LIMIT, description="camera")
    time: Optional[float] = Field(default=None, **TIMES, description="seconds since 1970 UTC, years 1 to 9999")


class Compacted(BaseModel):
    """The number of entries after compaction."""

    entries: int


class Deleted(BaseModel):
    """The deleted entry."""

    id: int


class DeletedMany(BaseModel):
    """The number of deleted entries."""

    deleted: int


class Overview(BaseModel):
    """Facts about the service, for the page."""

    entries: int
    cameras: list[int] = Field(description="the gallery's cameras as far as the service knows them, sorted")
    threshold: Optional[float]
    max_k: int
    upload_bytes: int
    pixels: int
    levels: int = Field(description="number of levels of attention that can be drawn; 0 for none")
    attention: list[str] = Field(description="kinds of attention that can be drawn")
    verdicts: int
    read_only: bool = Field(description="whether nothing can be changed, verdicts included")
    dimension: int
    model: str


class Page(BaseModel):
    """Some entries of the gallery."""

    entries: list[EntryOut]
    next: Optional[int] = Field(description="`after` for the next page; null after the last one, or with a sample")
    total: int = Field(description="number of entries that pass the filters")


class Example(BaseModel):
    """An example query."""

    number: int
    title: str


class Login(BaseModel):
    """The token that a visitor of the page has typed."""

    token: str = Field(max_length=1000)


class Feedback(BaseModel):
    """A verdict on a hit."""

    query: str = Field(
        pattern=r"^(sha256:[0-9a-f]{64}|id:(0|[1-9][0-9]{0,18}))$", description="as in the answer of the search"
    )
    hit: int = Field(ge=0, le=ID_LIMIT, description="id of the entry")
    verdict: Optional[Literal["right", "wrong"]] = Field(description="null removes an earlier verdict")
    distance: Optional[float] = Field(default=None, ge=0, le=1e6, description="as in the answer of the search")


class Marked(BaseModel):
    """The verdict that is stored now."""

    query: str
    hit: int
    verdict: Optional[Literal["right", "wrong"]]
    time: Optional[float] = Field(description="when it was stored, seconds since 1970 UTC; null if it was removed")
