"""The embedded default data set ``synthetic``: drawn pedestrians seen by six cameras.

Nothing has to be downloaded to train, test or try a reader. The images pose the difficulties of real
re-identification: viewpoints, camera colours, occlusion, bad boxes, and people who look alike but for
one detail. Data flow: identity → body in a pose → shapes on a canvas → what the camera makes of it.
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
