"""Creating and opening galleries. An engine's packages are imported only if that engine is used."""

import os
from typing import Any, Optional, Union

from han_tf.common.errors import UserError
from han_tf.metrics.checks import check_count
from han_tf.search.address import Address
from han_tf.search.entries import check_checksum, check_choice, check_switch, check_type
from han_tf.search.gallery import Gallery


def create_gallery(
    path: Union[str, os.PathLike],
    dimension: int,
    checksum: str,
    engine: str = "auto",
    *,
    collection: Optional[str] = None,
    **options: Any,
) -> Gallery:
    """Creates an empty gallery and opens it for writing.

    Args:
      path: a new or an empty folder; or, for Milvus, an address such as ``http://host:19530`` or a file of Milvus Lite,
        whose name ends in ``.db``. Addresses and files may end in ``#collection``; the default is ``gallery``.
      dimension: of the features.
      checksum: of the model that makes them.
      engine: ``auto``; ``flat``, ``hnsw`` or ``ivfpq`` for a folder, see
        :func:`han_tf.search.choice.choose_engine`; or ``milvus``, for its addresses only.
      collection: the name of the collection, instead of ``#collection``.
      **options: of the engine, see :meth:`han_tf.search.faiss_gallery.FaissGallery.create` and
        :meth:`han_tf.search.milvus_gallery.MilvusGallery.create`.

    Raises:
      UserError: there is a gallery already, it cannot be written or reached, or an argument is not valid.
    """
    check_count(dimension, "dimension", 1)
    check_checksum(checksum)
    address = Address.of(path, collection)
    if address is None:
        check_type(engine, str, "engine", "the name of one")
        if engine == "milvus":
            raise UserError(f"{os.fspath(path)!r} is no address of Milvus, expected http://HOST:PORT or a file NAME.db")
        from han_tf.search.faiss_gallery import FaissGallery

        return FaissGallery.create(path, dimension, checksum, engine, **options)
    check_choice(engine, "engine", ("auto", "milvus"), f"milvus at {address}")
    from han_tf.search.milvus_gallery import MilvusGallery

    return MilvusGallery.create(address, dimension, checksum, **options)


def open_gallery(
    path: Union[str, os.PathLike],
    checksum: Optional[str] = None,
    *,
    collection: Optional[str] = None,
    writable: bool = False,
    **options: Any,
) -> Gallery:
    """Opens a gallery.

    Args:
      path, collection: as of :func:`create_gallery`.
      checksum: of the model whose features will be searched for; compared with the gallery's if given.
      writable: whether to lock a folder for changes now instead of at the first change. One process at a time can hold
        the lock.
      **options: ``threads`` of a search in a folder, ``token`` of a Milvus cluster.

    Raises:
      UserError: there is no gallery, it is damaged, of another version or of another model, or another process has
        locked it for changes.
    """
    address = Address.of(path, collection)
    check_switch(writable, "writable")
    if address is None:
        from han_tf.search.faiss_gallery import FaissGallery

        gallery: Gallery = FaissGallery(path, writable=writable, **options)
    else:
        from han_tf.search.milvus_gallery import MilvusGallery

        gallery = MilvusGallery(address, **options)
    try:
        gallery.check_model(checksum)
    except UserError:
        gallery.close()
        raise
    return gallery


def gallery_exists(path: Union[str, os.PathLike]) -> bool:
    """Returns whether there is a gallery at ``path``, which may be damaged.

    Raises:
      UserError: Milvus cannot be reached at the address.
    """
    from han_tf.search.database import DATABASE

    address = Address.of(path)
    if address is None:
        return os.path.exists(os.path.join(path, DATABASE))
    from han_tf.search.milvus_gallery import MilvusGallery

    return MilvusGallery.exists(address)
