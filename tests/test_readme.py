"""The README is correct: its Python runs, its targets and files exist."""

import re
from pathlib import Path

import numpy as np
import pytest

from han_tf import __version__
from han_tf.weights import HERE, accuracy, shipped_names

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_runs_and_gives_the_shapes_it_says():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        assert names["features"].shape == (2, 1024)
    assert names["distance"] == 0  # of two black images
    assert len(names["attention"]) == 3
    assert not names["without"].localisation_variables
    assert np.isfinite(names["features"]).all()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_paths_that_contributors_are_told_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [name for name in re.findall(r"`((?:tests|han_tf|datasets)/[^`]*)`", text) if "NAME" not in name]
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_rooms_are_told_in_the_order_that_is_checked():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.findall(r'^    "han_tf\.(\w+)",$', text, re.MULTILINE)
    told = re.findall(r"^\| `han_tf/(\w+)` \|", TEXT, re.MULTILINE)
    assert told == layers[::-1]
    folders = {path.parent.name for path in (ROOT / "han_tf").glob("*/__init__.py")}
    assert folders == set(told)


def test_accuracies_of_the_networks_of_the_package_are_those_of_their_results():
    for name in shipped_names():
        found = accuracy(HERE / name)
        rank1, mAP = (f"{100 * found[kind]:.1f}" for kind in ("rank-1", "mAP"))
        assert re.search(rf"^\| `{name}`.* \| {rank1} \| {mAP} \|$", TEXT, re.MULTILINE), (name, rank1, mAP)


def test_the_citation_is_of_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z]+)", TEXT))))
def test_make_targets_exist(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)


def test_every_makefile_target_is_in_the_readme_or_the_help():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = " ".join(re.findall(r"^\.PHONY: ([a-z ]*)$", makefile, re.MULTILINE)).split()
    documented = re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)
    assert sorted(phony) == sorted(documented)
