"""A model card is read back as it was written, and refused if an entry is wrong."""

import dataclasses
import json

import pytest

from han_tf.common.errors import UserError
from han_tf.runs.card import CARD, READABLE, ModelCard, hash_files, read_card, verify_files
from tests.conftest import rewrite_card

MADE = ModelCard(
    format="onnx",
    precision="int8",
    checksum="ab" * 32,
    model="han_small",
    input_size=(160, 64),
    feature_dim=1024,
    branch_names=("global", "local"),
    dataset="market1501",
    split="",
    licence="research use only",
    schedule={"epochs": 300, "loss": "cross_entropy"},
    accuracy={"rank-1": 0.9, "mAP": 0.75},
    flops=368_000_000,
    han_tf_version="0.1.0",
    created="2026-01-01T00:00:00Z",
    check={"images": 8, "largest_difference": 1e-3, "least_cosine": 0.9999},
)


@pytest.fixture
def saved(tmp_path):
    """The folder of a model with two files."""
    (tmp_path / "model.onnx").write_bytes(b"weights")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "more").write_bytes(b"more weights")
    dataclasses.replace(MADE, files=hash_files(tmp_path)).save(tmp_path)
    return tmp_path


def test_what_is_read_is_what_was_written(saved):
    card = read_card(saved)
    assert set(card.files) == {"model.onnx", "parts/more"}
    assert dataclasses.replace(card, files={}) == MADE
    assert hash_files(saved) == card.files
    verify_files(saved, card)


def test_people_can_read_it(saved):
    text = (saved / READABLE).read_text()
    for part in (
        "market1501",
        "research use only",
        "epochs 300",
        "rank-1 90.00 %",
        "3.68e+08",
        "ab" * 32,
        "parts/more",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"kind": "something"}, "kind is 'something', expected 'han_tf model'"),
        ({"version": 2}, "version is 2, expected 1; export the run anew"),
        ({"colour": "red"}, "unknown entry 'colour'"),
        ({"checksum": "abc"}, "checksum is 'abc', expected 64 hexadecimal digits"),
        ({"input_size": [160]}, r"input_size is '\[160\]', expected height and width"),
        ({"feature_dim": 0}, "feature_dim is '0', expected a positive integer"),
        ({"branch_names": "global"}, "branch_names is 'global', expected a list"),
        ({"files": {"../../etc/passwd": "ab" * 32}}, "files is .* expected names in the folder"),
        ({"files": {"/etc/passwd": "ab" * 32}}, "files is .* expected names in the folder"),
        ({"files": {"a\0b": "ab" * 32}}, "files is .* expected names in the folder"),
        ({"files": {"a\ud800": "ab" * 32}}, "files is .* expected names in the folder"),
        ({"format": 7}, "format is '7', expected a string"),
    ],
)
def test_a_card_that_cannot_be_true_is_one_line(saved, entries, line):
    rewrite_card(saved, **entries)
    with pytest.raises(UserError, match=line) as raised:
        read_card(saved)
    assert str(raised.value).startswith(str(saved / CARD))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("entry", ["checksum", "files", "licence"])
def test_a_missing_entry_is_named(saved, entry):
    values = json.loads((saved / CARD).read_text())
    del values[entry]
    (saved / CARD).write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"no entry '{entry}'"):
        read_card(saved)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\x01"])
def test_a_damaged_card(saved, text):
    (saved / CARD).write_text(text)
    with pytest.raises(UserError, match=CARD):
        read_card(saved)


def test_no_card(tmp_path):
    with pytest.raises(UserError, match=r"No such file.*expected the folder of an exported model"):
        read_card(tmp_path)


def test_a_changed_or_missing_file(saved):
    card = read_card(saved)
    (saved / "parts" / "more").write_bytes(b"more weightz")
    with pytest.raises(UserError, match=r"parts/more: damaged or changed, SHA-256 is .*, expected"):
        verify_files(saved, card)
    (saved / "parts" / "more").unlink()
    with pytest.raises(UserError, match=r"parts/more: No such file"):
        verify_files(saved, card)
