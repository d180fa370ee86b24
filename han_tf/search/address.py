"""Addresses of Milvus galleries."""

import os
from typing import NamedTuple, Optional, Union
from urllib.parse import unquote

from han_tf.common.errors import UserError

COLLECTION = "gallery"
"""The collection of an address that names none."""


class Address(NamedTuple):
    """The address of a Milvus gallery. Its text form does not contain the token and may be shown.

    Attributes:
      uri: an http(s) address or a file of Milvus Lite.
      collection: its name.
      token: the part of the address before ``@``, ``user:password`` or a token; empty if there is none.
    """

    uri: str
    collection: str
    token: str = ""

    @classmethod
    def of(cls, path: Union[str, os.PathLike], collection: Optional[str] = None) -> Optional["Address"]:
        """Returns the address in ``path``, which may end in ``#collection``; None if ``path`` is a folder.

        Raises:
          UserError: no path; a scheme other than http and https with a token; no valid name of a collection.
        """
        uri, token = os.fspath(path) if isinstance(path, os.PathLike) else path, ""
        if not isinstance(uri, str):
            raise UserError(f"path is of type {type(path).__name__}, expected a folder or an address of Milvus")
        scheme, separator, rest = uri.partition("://")
        remote = bool(separator) and scheme.lower() in ("http", "https")
        if separator and not remote and "@" in rest:  # taken for a folder, its name would show the password
            raise UserError(f"{scheme}:// is no address of Milvus, expected http://HOST:PORT or https://HOST:PORT")
        if remote:
            token, _, host = rest.rpartition("@")  # the password may contain # and @
            uri, token = f"{scheme.lower()}://{host}", unquote(token)
        uri, _, named = uri.partition("#")
        if not remote and not uri.endswith(".db"):
            return None
        name = collection or named or COLLECTION
        if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
            raise UserError(f"collection is {name!r}, expected letters, digits and underscores")
        return cls(uri, name, token)  # type: ignore[call-arg]  # the alias below hides the fields from mypy

    @property
    def local(self) -> bool:
        """Whether the address is a file of Milvus Lite."""
        return self.uri.endswith(".db") and "://" not in self.uri

    def __str__(self) -> str:
        return f"{self.uri}#{self.collection}"

    __repr__ = __str__
