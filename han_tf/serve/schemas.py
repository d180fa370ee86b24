"""What the interface takes and gives, as OpenAPI describes it."""

from typing import Literal, Optional

from pydantic import BaseModel, Field

from han_tf.data.image_lists import END_OF_TIME, FIRST_TIME

ID_LIMIT = 2**63 - 1
NUMBER_LIMIT = 2**53 - 1
"""Largest pid and camera that is taken: the largest integer that JSON means the same everywhere. A gallery may hold
larger ones, which are answered with all their digits."""


TIMES = {"ge": FIRST_TIME, "lt": END_OF_TIME, "allow_inf_nan": False}
"""Bounds of a time: the years 1 to 9999."""


class Error(BaseModel):
    """Why a request was not answered as asked, in one line."""

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
    name: str = Field(description="file name, or what the client that added it called it; may be empty")
    pid: Optional[int] = Field(description="person, if known")
    camid: Optional[int] = Field(description="camera, if known")
    time: Optional[float] = Field(description="when it was taken, seconds since 1970 UTC, if known")


class HitOut(EntryOut):
    """An entry that was found."""

    distance: float = Field(description="L2 distance to the query's feature")
    beyond: bool = Field(description="farther than the threshold: shown, not claimed to be the same person")
    verdict: Optional[Literal["right", "wrong"]] = Field(description="what was said about this hit of this query")


class SearchResult(BaseModel):
    """The nearest entries, nearest first (re-ranked: most likely first)."""

    query: str = Field(description="`sha256:…` of an uploaded image or `id:…`; feedback names it")
    known: Optional[bool] = Field(
        description="whether any hit lies within the threshold; false means: not in the gallery. Null without threshold"
    )
    threshold: Optional[float] = Field(description="L2 distance beyond which nobody is taken for the same person")
    reranked: bool
    hits: list[HitOut]


class Added(BaseModel):
    """The entry that was made; it is on disk."""

    id: int


class AddedMany(BaseModel):
    """The entries that were made, in the order of the images; they are on disk."""

    ids: list[int]


class Correction(BaseModel):
    """What is known better; what is left out stays, null means: not known."""

    pid: Optional[int] = Field(default=None, ge=-NUMBER_LIMIT, le=NUMBER_LIMIT, description="person")
    camid: Optional[int] = Field(default=None, ge=-NUMBER_LIMIT, le=NUMBER_LIMIT, description="camera")
    time: Optional[float] = Field(default=None, **TIMES, description="seconds since 1970 UTC, years 1 to 9999")


class Compacted(BaseModel):
    """What is left."""

    entries: int


class Deleted(BaseModel):
    """The entry that is gone."""

    id: int


class Overview(BaseModel):
    """What there is to choose from: for the page's filters."""

    entries: int
    cameras: list[int] = Field(description="those that have been met so far, sorted")
    threshold: Optional[float]
    max_k: int
    upload_bytes: int
    pixels: int
    levels: int = Field(description="levels of attention that can be drawn; 0 for none")
    attention: list[str] = Field(description="kinds of attention that can be drawn")
    verdicts: int
    read_only: bool = Field(description="whether nothing can be changed, verdicts included")
    dimension: int
    model: str


class Page(BaseModel):
    """Some entries of the gallery."""

    entries: list[EntryOut]
    next: Optional[int] = Field(
        description="`after` of the entries that follow; null if none do, or where no `after` was given"
    )


class Example(BaseModel):
    """A query that can be tried."""

    number: int
    title: str


class Login(BaseModel):
    """What the page's visitor typed."""

    token: str = Field(max_length=1000)


class Feedback(BaseModel):
    """What somebody says about a hit."""

    query: str = Field(pattern=r"^(sha256:[0-9a-f]{64}|id:(0|[1-9][0-9]{0,18}))$", description="as the search answered")
    hit: int = Field(ge=0, le=ID_LIMIT, description="id of the entry")
    verdict: Optional[Literal["right", "wrong"]] = Field(description="null takes an earlier verdict back")
    distance: Optional[float] = Field(default=None, ge=0, le=1e6, description="as the search answered")


class Marked(BaseModel):
    """What is kept now."""

    query: str
    hit: int
    verdict: Optional[Literal["right", "wrong"]]
    time: Optional[float] = Field(description="when, seconds since 1970 UTC")
