"""The embedded default data set ``synthetic``: drawn pedestrians seen by six cameras.

Training, testing and trying a reader need no download. The images have the difficulties of real re-identification:
viewpoints, camera colours, occlusion, bad boxes, and people who differ in one detail only. Data flow: identity → body
in a pose → tubes on a canvas → the camera's image.
"""

from han_tf.data.synthetic.generator import GENERATOR_VERSION, SyntheticPedestrians
from han_tf.data.synthetic.images import LabelledImage
from han_tf.data.synthetic.layouts import LAYOUTS, write_layout
from han_tf.data.synthetic.store import draw_once, generate, is_current

__all__ = [
    "GENERATOR_VERSION",
    "LAYOUTS",
    "LabelledImage",
    "SyntheticPedestrians",
    "draw_once",
    "generate",
    "is_current",
    "write_layout",
]
