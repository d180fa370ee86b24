"""Lists of images hold every image once, with its labels; errors name the file or line."""

import csv
import errno
import hashlib
import math
import os
import random
from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from han_tf.common.errors import UserError
from han_tf.data import Record
from han_tf.data.image_lists import UNKNOWN, list_images, listed_records, parse_time


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in sorted(names)]


def write_csv(path, rows, header=("path", "pid", "camid", "time")):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(path)


def error_of(*arguments):
    """Returns the error message, which must be one line."""
    with pytest.raises(UserError) as raised:
        list_images(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_folders_are_looked_through_with_all_below_them(tmp_path):
    images = touch(tmp_path, "b.jpg", "a/c.JPEG", "a/d/e.png", "a/d/f.webp", "z.jpg.jpg")
    touch(tmp_path, "a/Thumbs.db", "a/._c.jpg", "notes.txt", "a/jpg")
    found = list_images([str(tmp_path)])
    assert found.paths == sorted(images)
    assert (found.pids == UNKNOWN).all()
    assert (found.camids == UNKNOWN).all()
    assert np.isnan(found.times).all()
    assert found.duplicates == 0


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "elsewhere/a.jpg", "tree/b.jpg")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / "circle").symlink_to(tmp_path / "tree")
    assert list_images([str(tmp_path / "tree")]).paths == touch(tmp_path / "tree", "b.jpg", "link/a.jpg")


def test_hidden_folders_previews_and_what_is_no_file_are_passed_over_and_counted(tmp_path):
    images = touch(tmp_path, "a.jpg", "b/c.tiff", "d.GIF", ".hidden")
    touch(tmp_path, "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", ".Trash/e.jpg", "b/notes.txt", "b/notes.TXT", "Thumbs.db")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "circle").symlink_to("circle")
    found = list_images([str(tmp_path)])
    assert found.paths == [path for path in images if not path.endswith(".hidden")]
    assert found.passed == {
        "hidden folders or previews": 2,
        "files named *.txt": 1,
        "files named *.TXT": 1,
        "folders, links to nothing or other things that are no files": 2,
    }
    (tmp_path / "b" / ".c").mkdir()
    touch(tmp_path, "b/.c/d.jpg")
    assert list_images([str(tmp_path / "b" / ".c")]).paths == [str(tmp_path / "b/.c/d.jpg")]  # asked for by name


def test_a_link_named_as_an_image_that_leads_nowhere_is_missing(tmp_path):
    touch(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to("nowhere")
    (tmp_path / "c.jpg").symlink_to("c.jpg")
    found = list_images([str(tmp_path)])
    assert [bool(content) for content in found.contents] == [True, False, False]
    assert [os.path.basename(path) for path in found.paths] == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("checksum", [False, True])
def test_contents_change_with_the_file_or_with_its_bytes(tmp_path, checksum):
    paths = touch(tmp_path, *(f"{number:03}.jpg" for number in range(600)))

    def changed(change):
        before = list_images([str(tmp_path)], checksum=checksum).contents
        change(tmp_path / "300.jpg")
        after = list_images([str(tmp_path)], checksum=checksum).contents
        return [path[-7:] for path, old, new in zip(paths, before, after) if old != new]

    assert changed(lambda path: path.write_bytes(b"longer")) == ["300.jpg"]
    assert changed(lambda path: os.utime(path, (1, 2))) == ([] if checksum else ["300.jpg"])
    expected = f"sha256:{hashlib.sha256(b'longer').hexdigest()}" if checksum else "6 2000000000"
    assert list_images([str(tmp_path)], checksum=checksum).contents[300] == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("cam*/*.jpg", ["cam1/a.jpg", "cam2/b.jpg"]),
        ("cam[2-9]", ["cam2/b.jpg", "cam2/day/c.jpg"]),
        ("**/*.jpg", ["cam1/a.jpg", "cam2/b.jpg", "cam2/day/c.jpg"]),
        ("*/?.jpg", ["cam1/a.jpg", "cam2/b.jpg"]),
    ],
)
def test_patterns(tmp_path, pattern, expected):
    touch(tmp_path, "cam1/a.jpg", "cam1/a.txt", "cam2/b.jpg", "cam2/day/c.jpg")
    assert list_images([str(tmp_path / pattern)]).paths == [str(tmp_path / name) for name in expected]


@pytest.mark.parametrize("pattern", ["*", "**", "**/*", "**/*.jpg"])
def test_patterns_match_what_folders_hold(tmp_path, monkeypatch, pattern):
    """A link in a circle has 40 paths to each image, and a NAS keeps two small copies of each."""

    def unreadable(folder):
        raise OSError(errno.EIO, os.strerror(errno.EIO), folder)

    touch(tmp_path, "a.jpg", "day/b.jpg", "day/z.jpg", "@eaDir/a.jpg/THUMB.jpg", "day/@eaDir/b.jpg/THUMB.jpg")
    touch(tmp_path, "day/.hidden/c.jpg")
    os.mkfifo(tmp_path / "day" / "pipe.jpg")
    for link in ("circle", "day/back", "day/circle"):
        (tmp_path / link).symlink_to(tmp_path)
    found = list_images([str(tmp_path / pattern)])
    assert found.paths == list_images([str(tmp_path)]).paths == touch(tmp_path, "a.jpg", "day/b.jpg", "day/z.jpg")
    assert found.passed["folders, links to nothing or other things that are no files"] >= 1
    assert found.passed["hidden folders or previews"] >= 1
    assert found.duplicates == 0
    monkeypatch.setattr(os, "scandir", unreadable)
    assert error_of([str(tmp_path / pattern)]).endswith("Input/output error, expected a readable folder")
    monkeypatch.undo()
    named = list_images([str(tmp_path / "day" / "@eaDir" / "*" / "*.jpg")])
    assert named.paths == [str(tmp_path / "day/@eaDir/b.jpg/THUMB.jpg")]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    (path,) = touch(tmp_path, "a/b.jpg")
    monkeypatch.chdir(tmp_path)
    for source in ("a", "a/b.jpg", "a/*.jpg", "a/../a/b.jpg"):
        assert list_images([source]).paths == [path]


def test_the_folder_above_a_link_is_that_above_its_target(tmp_path, monkeypatch):
    """As for the system, which opens the images."""
    (image,) = touch(tmp_path / "disk", "own/images/3.png")
    touch(tmp_path / "sets", "images/3.png")
    (tmp_path / "disk" / "own" / "lists").mkdir()
    (tmp_path / "sets" / "link").symlink_to(tmp_path / "disk" / "own" / "lists")
    source = write_csv(tmp_path / "sets" / "link" / "l.csv", [("../images/3.png", "1", "1", "")])
    assert list_images([source]).paths == [os.path.realpath(image)]
    record = Record(f"{tmp_path}/sets/link/../images/3.png", 1, 1)
    assert os.path.samefile(record.path, listed_records([record]).paths[0])
    monkeypatch.chdir(tmp_path / "sets" / "images")
    assert list_images(["../images/3.png"]).paths == [f"{tmp_path}/sets/images/3.png"]


def test_the_same_image_is_taken_once(tmp_path):
    paths = touch(tmp_path, "a.jpg", "b.jpg")
    found = list_images([str(tmp_path), paths[0], str(tmp_path / "*.jpg")])
    assert found.paths == paths
    assert found.duplicates == 3


def test_an_image_with_two_labels_is_refused(tmp_path):
    path = write_csv(
        tmp_path / "list.csv", [("a.jpg", "1", "2", ""), ("b.jpg", "1", "2", ""), ("./a.jpg", "1", "", "")]
    )
    text = error_of([path])
    assert text == f"{tmp_path}/a.jpg: in the list twice, with camid 2 and unknown, expected one"


NAME = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="/\0"), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.dictionaries(
        NAME.map(str.strip).filter(lambda name: name not in ("", ".", "..")),
        st.tuples(
            st.none() | st.integers(-1, 10**18 - 1),
            st.none() | st.integers(0, 10**18 - 1),
            st.none() | st.floats(-62_135_596_800, 253_402_300_800, exclude_max=True),
        ),
        min_size=1,
    ),
    header=st.permutations(["path", "pid", "camid", "time", "remark"]),
)
def test_a_csv_file_says_what_its_rows_say(tmp_path, rows, header):
    lines = [
        dict(zip(("path", "pid", "camid", "time", "remark"), (name, *labels, "x"))) for name, labels in rows.items()
    ]
    random.Random(0).shuffle(lines)
    path = write_csv(tmp_path / "list.csv", [[line[column] for column in header] for line in lines], header)
    found = list_images([path])
    assert found.paths == sorted(str(tmp_path / name) for name in rows)
    for row, image in enumerate(found.paths):
        pid, camid, time = rows[os.path.basename(image)]
        assert found.pids[row] == (UNKNOWN if pid is None else pid)
        assert found.camids[row] == (UNKNOWN if camid is None else camid)
        assert math.isnan(found.times[row]) if time is None else found.times[row] == time


def test_columns_that_are_not_there_are_unknown(tmp_path):
    path = write_csv(tmp_path / "list.csv", [("a.jpg", "7")], ("path", "camid"))
    found = list_images([path])
    assert (found.pids[0], found.camids[0]) == (UNKNOWN, 7)


def test_absolute_paths_stay(tmp_path):
    (tmp_path / "list.csv").write_text("path\n/data/a.jpg\n")
    assert list_images([str(tmp_path / "list.csv")]).paths == ["/data/a.jpg"]


# tests/data/test_readers.py has more mistakes in CSV files, which the same reader finds.
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: found the header '', expected path[,pid][,camid][,time]"),
        ("path,pid\na.jpg,1\n,1\n", "line 3: path is '', expected an image file"),
        ("path,pid\na.jpg,one\n", "line 2: pid is 'one', expected an integer of at least -1"),
        ("path,pid\na.jpg,-2\n", "line 2: pid is '-2', expected an integer of at least -1"),
        ("path,pid\na.jpg,1.0\n", "line 2: pid is '1.0'"),
        ("path,pid\na.jpg,99999999999999999999\n", "line 2: pid is '99999999999999999999'"),
        ("path,camid\na.jpg,-1\n", "line 2: camid is '-1', expected an integer of at least 0"),
        ("path,time\na.jpg,noon\n", "line 2: time is 'noon', expected seconds since 1970 or ISO 8601"),
        ("path,time\na.jpg,nan\n", "line 2: time is 'nan'"),
        ("path,time\na.jpg,1_0\n", "line 2: time is '1_0'"),
        ("path,time\na.jpg,1e999\n", "line 2: time is '1e999'"),
        ("path,time\na.jpg,1767225600250\n", "time is '1767225600250', expected seconds since 1970 or ISO 8601"),
        ("path,time\na.jpg,253402300800\n", "in the years 1 to 9999"),
        ("path,time\na.jpg,0001-01-01T00:00+00:01\n", "line 2: time is '0001-01-01T00:00+00:01'"),
        ("path\n", "no images found, expected at least one"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "list.csv"
    path.write_text(text)
    found = error_of([str(path)])
    assert found.startswith(str(path))
    assert words in found


def test_sources_that_are_none_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    for name, words in (
        ("no", "no such file or folder"),
        ("no.csv", "No such file"),
        ("empty", "no images found"),
        ("*.jpg", "no images found"),
        ("notes.txt", "expected a folder, a CSV file (.csv) or an image"),
    ):
        found = error_of([str(tmp_path / name)])
        assert found.startswith(f"{tmp_path / name}: ")
        assert words in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1767225600.25", 1767225600.25),
        ("2026-01-01T00:00:00+00:00", 1767225600),
        ("2026-01-01T01:00:00+01:00", 1767225600),
        ("2026-01-01 00:00:00", 1767225600),
        ("2026-01-01T00:00:00Z", 1767225600),
        ("2026-01-01", 1767225600),
        ("0001-01-01", -62135596800),
        ("9999-12-31T23:59:59", 253402300799),
    ],
)
def test_times(text, expected):
    assert parse_time(text) == expected


@pytest.mark.parametrize("text", ["20260301", "19991231", "202603010830"])
def test_dates_of_digits_alone_are_refused(tmp_path, text):
    """As seconds they would be of 1970 or beyond the year 7990."""
    message = error_of([write_csv(tmp_path / "l.csv", [("a.jpg", "", "", text)])])
    assert f"l.csv, line 2: time is '{text}', expected seconds since 1970 or ISO 8601" in message
    assert parse_time("20261301") == 20261301  # no such month


@given(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)))
def test_any_moment_is_read_back(moment):
    assert parse_time(moment.isoformat()) == pytest.approx(moment.replace(tzinfo=timezone.utc).timestamp(), abs=1e-5)


class TestNames:
    def test_of_market1501(self, tmp_path):
        touch(tmp_path, "0002_c1s1_000451_03.jpg", "-1_c3s1_000001_01.jpg", "0000_c6s4_000001_01.jpg.jpg")
        found = list_images([str(tmp_path)], "market1501")
        assert list(found.pids) == [-1, 0, 2]
        assert list(found.camids) == [3, 6, 1]

    def test_by_an_expression_on_the_path(self, tmp_path):
        touch(tmp_path, "cam7/p12_1767225600.jpg", "cam8/p3_1767225601.5.jpg")
        found = list_images([str(tmp_path)], r"cam(?P<camid>\d+)/p(?P<pid>\d+)_(?P<time>[\d.]+)\.jpg$")
        assert (list(found.pids), list(found.camids)) == ([12, 3], [7, 8])
        assert list(found.times) == [1767225600, 1767225601.5]

    def test_fill_what_a_csv_file_leaves_open(self, tmp_path):
        path = write_csv(tmp_path / "l.csv", [("0002_c1s1_000451_03.jpg", "", "9", "")])
        found = list_images([path], "market1501")
        assert (found.pids[0], found.camids[0]) == (2, 9)

    def test_need_not_fit_where_the_csv_file_says_all(self, tmp_path):
        rows = [("anna.jpg", "7", "2", ""), ("0002_c1s1_000451_03.jpg", "", "", "")]
        found = list_images([write_csv(tmp_path / "l.csv", rows)], "market1501")
        assert (list(found.pids), list(found.camids)) == ([2, 7], [1, 2])
        found = list_images([write_csv(tmp_path / "l.csv", rows[:1])], r"p(?P<pid>\d+)")
        assert found.pids[0] == 7
        assert "anna.jpg" in error_of([write_csv(tmp_path / "l.csv", [("anna.jpg", "7", "", "")])], "market1501")

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            ("market1501", "a.jpg: the file name does not fit, expected one as in market1501"),
            (r"(?P<pid>\d+)_x", "a.jpg: the path does not fit the expression"),
            (r"(?P<camid>a)", "a.jpg: camid is 'a', expected an integer"),
            ("(", "names '(': expected market1501, dukemtmc or a regular expression"),
            ("(?P<person>a)", "expected market1501, dukemtmc or an expression with groups of (?P<pid>…)"),
            ("market", "expected market1501, dukemtmc or an expression with groups"),
        ],
    )
    def test_that_do_not_fit(self, tmp_path, names, words):
        touch(tmp_path, "a.jpg")
        assert words in error_of([str(tmp_path)], names)

    def test_of_more_digits_than_64_bits_hold(self, tmp_path):
        touch(tmp_path, "10000000000000000000_c1s1_000451_03.jpg")
        text = error_of([str(tmp_path)], "market1501")
        assert "pid is 10000000000000000000, expected an integer of at least -1, up to 18 digits" in text


def test_records_of_a_data_set():
    found = listed_records([Record("/b.jpg", 2, 1), Record("/a.jpg", -1, 3), Record("/b.jpg", 2, 1)])
    assert found.paths == ["/a.jpg", "/b.jpg"]
    assert (list(found.pids), list(found.camids), found.duplicates) == ([-1, 2], [3, 1], 1)


def test_the_fingerprint_changes_with_every_path_and_label():
    records = [Record("/a.jpg", 1, 2), Record("/b.jpg", 2, 1)]
    fingerprints = {
        listed_records(changed).fingerprint()
        for changed in (
            records,
            records[:1],
            [records[0], Record("/c.jpg", 2, 1)],
            [records[0], Record("/b.jpg", 3, 1)],
            [records[0], Record("/b.jpg", 2, 2)],
        )
    }
    assert len(fingerprints) == 5
    assert listed_records(records[::-1]).fingerprint() == listed_records(records).fingerprint()


def test_names_of_images_may_hold_line_breaks(tmp_path):
    images = touch(tmp_path, "a\nb.jpg", "c.jpg")
    assert list_images([str(tmp_path)]).paths == images
