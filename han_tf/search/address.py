"""Addresses of Milvus galleries."""

import os
from typing import NamedTuple, Optional, Union
from urllib.parse import unquote

from han_tf.common.errors import UserError

COLLECTION = "gallery"


class Address(NamedTuple):
    """The address of a Milvus gallery.

    Its text form leaves out the token, so it can be shown.

    Attributes:
      uri: an http(s) address or a file of Milvus Lite.
      collection: its name.
      token: ``user:password`` or a token that stood in the address, before an ``@``; empty if none did.
    """

    uri: str
    collection: str
    token: str = ""

    @classmethod
    def of(cls, path: Union[str, os.PathLike], collection: Optional[str] = None) -> Optional["Address"]:
        """Returns the address that ``path`` is, with the collection after a ``#``; None if it is a folder's."""
        uri, token = os.fspath(path), ""
        scheme, separator, rest = uri.partition("://")
        remote = bool(separator) and scheme.lower() in ("http", "https")
        if separator and not remote and "@" in rest:  # a password may stand there, which a folder's name would show
            raise UserError(f"{scheme}:// is no address of Milvus, expected http://HOST:PORT or https://HOST:PORT")
        if remote:
            token, _, host = rest.rpartition("@")  # a password may hold any sign, a # or an @ too
            uri, token = f"{scheme.lower()}://{host}", unquote(token)
        uri, _, named = uri.partition("#")
        if not remote and not uri.endswith(".db"):
            return None
        name = collection or named or COLLECTION
        if not name.isidentifier() or not name.isascii():
            raise UserError(f"collection is {name!r}, expected letters, digits and underscores")
        return cls(uri, name, token)  # type: ignore[call-arg]  # the alias below hides the fields from mypy

    @property
    def local(self) -> bool:
        """Whether the address is a file of Milvus Lite."""
        return self.uri.endswith(".db") and "://" not in self.uri

    def __str__(self) -> str:
        return f"{self.uri}#{self.collection}"

    __repr__ = __str__
