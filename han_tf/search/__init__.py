"""Galleries of features to search in, behind one interface: FAISS in a folder, or Milvus.

README.md in this folder has examples. An engine's packages are imported when a gallery is created or opened.
"""

from han_tf.search.entries import Entry, Filters, Hit
from han_tf.search.gallery import Gallery
from han_tf.search.opening import create_gallery, open_gallery

__all__ = ["Entry", "Filters", "Gallery", "Hit", "create_gallery", "open_gallery"]
