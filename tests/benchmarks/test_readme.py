"""The benchmarks' README says what the stored results say."""

import plot


def test_the_readme_is_as_the_results_make_it(capsys):
    """`python benchmarks/plot.py --check` on the real document; when it fails, run the script without `--check`."""
    assert plot.main(["--check"]) == 0, capsys.readouterr().out
