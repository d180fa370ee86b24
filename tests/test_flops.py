"""The command that prints FLOPs and parameters."""

import re

import pytest

from han_tf import flops
from han_tf.common.cli import run


def printed(capsys, *arguments):
    assert run(flops.main, flops.FLAGS, flops.__doc__, ["flops", *arguments]) == 0
    return capsys.readouterr().out


def test_published_figures_are_the_papers():
    assert flops.PUBLISHED == {
        "han_small": ("Table 1", 3.68e8),
        "han_medium": ("Table 1", 5.33e8),
        "han_large": ("Table 1", 7.01e8),
        "han_inception": ("Table 12", 1.09e9),
        "han_residual": ("Table 12", 1.34e9),
    }


def test_one_table_per_network_with_the_published_figure_under_the_sum(capsys):
    output = printed(capsys, "--arch", "han_residual,han_small", "--arch", "han_residual")
    tables = [table.splitlines() for table in output.strip().split("\n\n")]
    assert [table[0].split()[0] for table in tables] == ["han_residual", "han_small"]
    for table, name, figure in zip(tables, ("Table 12", "Table 1"), (1.34e9, 3.68e8)):
        *_, total, published = table
        assert total.startswith("total ")
        ours = float(total.split()[1])
        theirs, error = re.fullmatch(rf"{name} +(\S+) +\(([+-]\d\.\d\d)%\)", published).groups()
        assert float(theirs) == figure
        # The sum is printed to four digits.
        assert float(error) == pytest.approx(100 * (ours / figure - 1), abs=0.05)


def test_another_input_size_has_no_published_figure(capsys):
    output = printed(capsys, "--arch", "han_small", "--input_height", "64", "--input_width", "32")
    assert "total" in output
    assert "Table" not in output
