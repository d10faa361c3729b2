"""Mix reasoning and general traces into one data set: by weight, without near-duplicates and benchmark questions.

    python recipes/mixture.py                                    # nano: countdown traces and general rows, offline
    python recipes/mixture.py --config r1_800k                   # R1's composition, from your own files
    python recipes/mixture.py --config my.yaml --total_rows 1000 # your own, with an option over it

Options are the fields of `MixtureArguments`. The stage itself is `trl_r1.pipeline.mixture`. A second start goes on where the
first was stopped.
"""

from __future__ import annotations

import sys

from trl_r1.cli import run

if __name__ == "__main__":
    sys.exit(run("mixture", sys.argv[1:]))
