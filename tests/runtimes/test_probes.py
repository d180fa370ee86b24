"""A model is refused if its features of the probe images differ from those in its card."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from han_tf.common.errors import Note, UserError
from han_tf.features.extractor import FeatureExtractor
from han_tf.runs.card import CARD, read_card
from han_tf.runtimes import probes
from tests.conftest import rewrite_card


def test_a_model_whose_features_are_off_is_refused(plain_model):
    """The card holds the features of other images, as if this processor computed wrong ones."""
    card = read_card(plain_model)
    features = np.frombuffer(base64.b64decode(card.probes["features"]), "<f4").reshape(probes.PROBES, card.feature_dim)
    moved = np.roll(features, 1, axis=0)
    off = {**card.probes, "features": base64.b64encode(moved.tobytes()).decode(), "processor": "an abacus"}
    cosine = min(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(features, moved))
    rewrite_card(plain_model, probes=off)
    with pytest.raises(UserError) as raised:
        FeatureExtractor(plain_model)
    line = str(raised.value)
    assert line.startswith(f"{plain_model}: on this processor, {probes.processor()}, this openvino model in float32")
    found = float(re.search(r"probe images is (\S+), expected at least 0\.999990, as on an abacus", line)[1])
    assert found == pytest.approx(cosine, abs=1e-4)
    assert "\n" not in line
    rewrite_card(plain_model, probes={**off, "least_cosine": found - 1e-3})
    FeatureExtractor(plain_model)  # the card's own bound applies


def test_features_that_are_not_finite_are_refused(plain_model, monkeypatch):
    monkeypatch.setattr(probes, "embed", lambda runtime, images: np.full([len(images), 8], np.nan, np.float32))
    with pytest.raises(UserError, match="probe images is nan, expected at least"):
        FeatureExtractor(plain_model)


def test_features_of_another_width_are_one_line(plain_model):
    card = read_card(plain_model)
    features = base64.b64encode(np.ones([probes.PROBES, 4], "<f4").tobytes()).decode()
    rewrite_card(plain_model, feature_dim=4, probes={**card.probes, "features": features})
    line = rf"^{plain_model}: this model gives features \[4, 8\] of 4 images, expected \[4, 4\] as in card.json"
    with pytest.raises(UserError, match=line):
        FeatureExtractor(plain_model)


def test_a_model_that_fails_on_the_probe_images_is_one_line(plain_model):
    """The card's images are of another size than the model's."""
    size = (32, 16)
    images = [base64.b64encode(png(size)).decode()] * probes.PROBES
    rewrite_card(plain_model, input_size=size, probes={**read_card(plain_model).probes, "images": images})
    line = rf"^{plain_model}: openvino cannot run this model \(.+\); export the run anew$"
    with pytest.raises(UserError, match=line) as raised:
        FeatureExtractor(plain_model)
    assert "\n" not in str(raised.value)


def png(size):
    """An image of this height and width, as the bytes of a PNG."""
    stream = io.BytesIO()
    Image.new("RGB", size[::-1]).save(stream, "PNG")
    return stream.getvalue()


def test_the_cosine_of_rows_without_any_feature():
    zeros, ones = np.zeros([1, 2], np.float32), np.ones([1, 2], np.float32)
    assert probes.least_cosine(zeros, zeros) == 1
    assert probes.least_cosine(zeros, ones) == probes.least_cosine(ones, zeros) == 0
    assert np.isnan(probes.least_cosine(zeros, zeros * np.nan))


def test_the_bound_follows_from_how_far_off_the_export_is():
    images = np.zeros([1, 2, 2, 3], np.uint8)
    expected, found = np.array([[1.0, 0.0]], np.float32), np.array([[0.96, 0.28]], np.float32)
    made = probes.entry(images, expected, found, "int8")
    assert (made["cosine"], made["least_cosine"]) == pytest.approx((0.96, 0.92))
    assert probes.entry(images, expected, expected, "int8")["least_cosine"] == pytest.approx(0.99)


def test_an_export_without_probes_opens_with_a_note(plain_model):
    values = json.loads((plain_model / CARD).read_text())
    del values["probes"]
    (plain_model / CARD).write_text(json.dumps(values))
    with pytest.warns(Note, match=f"{plain_model}: an export without probe images"):
        FeatureExtractor(plain_model)


@pytest.mark.parametrize(
    "change",
    [
        {"images": ["AAAA"]},
        {"images": []},
        {"images": None},
        {"features": "AAAA"},
        {"features": "?"},
        {"least_cosine": None},
    ],
    ids=str,
)
def test_damaged_probes_are_one_line(plain_model, change):
    rewrite_card(plain_model, probes={**read_card(plain_model).probes, **change})
    line = rf"^{plain_model / CARD}: probes are damaged \(.+\); export the run anew$"
    with pytest.raises(UserError, match=line) as raised:
        FeatureExtractor(plain_model)
    assert "\n" not in str(raised.value)


def test_an_image_of_another_size_is_not_decoded(plain_model, monkeypatch):
    large = base64.b64encode(png((48, 33))).decode()
    monkeypatch.setattr(Image.Image, "load", None)
    rewrite_card(plain_model, probes={**read_card(plain_model).probes, "images": [large]})
    with pytest.raises(UserError, match=r"probes are damaged \(an image is RGB 33x48\)"):
        FeatureExtractor(plain_model)
