"""Who may use the service, and whether it may be changed."""

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from han_tf.common.errors import UserError

VARIABLE = "HAN_TF_TOKEN"
"""The environment variable that may hold the token."""

COOKIE = "han_tf"
"""Name of the cookie of a browser that has sent the token."""

OPEN = ("/", "/docs", "/login")
PAGE_FILES = "/page/"
"""Paths that need no token: the page's own files, which contain nothing of the gallery, and the login."""

READING = ("/embed", "/search", "/attention", "/login")
"""Paths at which a POST changes nothing."""

_ADDED = "the images may have been added all the same"
ONCE = {
    ("POST", "/gallery"): _ADDED,
    ("POST", "/gallery/batch"): _ADDED,
    ("POST", "/compact"): "the compaction goes on",
}
"""Requests that should not be repeated if they take too long -> what the answer says then."""

LEAST = 16
"""Shortest token, in characters; too long to be guessed, so that wrong tokens need not be counted."""


@dataclass(frozen=True)
class Access:
    """The access rules of a service.

    Attributes:
      token: sent by clients as ``Authorization: Bearer TOKEN``; empty if none is required.
      read_only: whether nothing may be changed, feedback included.
    """

    token: str = field(default="", repr=False)
    read_only: bool = False

    def admits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Returns whether a request with these headers, names in lower case, has the token or a browser's cookie."""
        if not self.token:
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and self.is_token(given.strip()):
            return True
        # Browsers send the cookies of all services of this host; those may be of any form.
        cookies = (part.strip().partition(b"=") for part in headers.get(b"cookie", b"").split(b";"))
        given = next((value for name, _, value in cookies if name == COOKIE.encode()), b"")
        return hmac.compare_digest(given.strip(b'"'), self.cookie.encode())

    def is_token(self, given: bytes) -> bool:
        """Returns whether ``given`` is the token; the time that takes does not depend on where they differ."""
        return hmac.compare_digest(given, self.token.encode())

    @property
    def cookie(self) -> str:
        """The cookie a browser stores instead of the token; it is invalid once the token changes."""
        return hmac.new(self.token.encode(), b"han-tf browser", hashlib.sha256).hexdigest()


def read_token(path: str) -> str:
    """Returns the token in a file, or in :data:`VARIABLE` if ``path`` is empty; "" if that is not set either.

    Raises:
      UserError: the file cannot be read; the token is too short or contains other than printable ASCII characters.
    """
    where = path or VARIABLE
    if path:
        try:
            token = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read --token {path}: {getattr(error, 'strerror', None) or error}") from error
    elif VARIABLE in os.environ:
        token = os.environ[VARIABLE].strip()
    else:
        return ""
    if len(token) < LEAST or not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"{where}: a token of {len(token)} characters, expected at least {LEAST} printable ASCII ones, no spaces"
        )
    return token
