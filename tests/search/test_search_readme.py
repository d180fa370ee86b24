"""The README's example runs from top to bottom and prints what it announces."""

import re
from pathlib import Path

import han_tf.search
from han_tf import index
from han_tf.search import __main__ as search
from han_tf.search.choice import FLAT_BYTES

README = Path(han_tf.search.__file__).with_name("README.md")


def test_the_example_of_a_gallery_runs(run_readme, capsys):
    names = run_readme(README, blocks=4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0.000 crops/0.jpg camera")
    own = f"camera {names['camids'][0]}"
    elsewhere = [line for line in lines if line.startswith("elsewhere")]
    assert len(elsewhere) == 3
    assert not any(line.endswith(own) for line in elsewhere)
    reranked = [line for line in lines if line.startswith("re-ranked")]
    assert reranked[0].endswith("crops/0.jpg")
    assert len(reranked) == 3
    assert re.search(r"threshold 0\.\d+: \d+% of the images are still recognised", "\n".join(lines))
    assert lines[-1] == "not in the gallery"


def test_the_readme_names_existing_flags():
    text = README.read_text(encoding="utf-8")
    known = {*index.FLAGS, *search.FLAGS, "output", "folder"}
    assert {flag.replace("-", "_") for flag in re.findall(r"--([a-z_]+)", text)} <= known
    assert f"{FLAT_BYTES // 2**20} MiB of vectors ({FLAT_BYTES // 4096:,} of 1,024-D)" in text
