"""The README's Python blocks run, one after the other, and print plausible results."""

import re
from pathlib import Path

from PIL import Image

import han_tf.metrics

README = Path(han_tf.metrics.__file__).with_name("README.md")


def test_the_example_runs(run_readme, capsys):
    names = run_readme(README, blocks=8)
    printed = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r"mAP (?:across cameras )?([\d.]+)%", printed)]
    plain, across, cosine, reranked, expanded = shares
    assert cosine == plain  # unit features: both distances rank alike
    assert across >= plain  # the additional images left out are all mistakes
    assert min(reranked, expanded) > plain
    assert f"rank-1 {names['shot'].cmc[0]:.1%}, mean of 100 draws" in printed
    assert 0.1 < names["shot"].cmc[0] < names["shot"].mAP
    assert "queries have no match and are left out" in printed
    assert len(re.findall(r"accept below", printed)) == 2
    assert names["first"].shape == (10, 1100)
    assert len(Path("per_query.csv").read_text().splitlines()) == 101
    for name in ("cmc", "precision_recall", "roc"):
        assert Image.open(f"{name}.png").size == (900, 675)


def test_every_public_name_is_exported():
    for name in han_tf.metrics.__all__:
        assert getattr(han_tf.metrics, name) is not None
