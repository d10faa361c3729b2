"""Questions of any data set → completions with verdicts, resumable.

    python recipes/sample.py --model_name_or_path nano --dataset nano:countdown --n 4        # on this machine
    accelerate launch recipes/sample.py --model_name_or_path MODEL --dataset DATA            # one engine per GPU
    python recipes/sample.py --server_urls http://a:8000/v1 http://b:8000/v1 --dataset DATA  # servers elsewhere

The same command again goes on where it was stopped. Options are the fields of `SampleArguments`: who samples
(`SamplerConfig`) and what is asked (`SourceConfig`). The stage itself is `trl_r1.pipeline.sample`.
"""

from __future__ import annotations

import sys

from trl_r1.cli import run

if __name__ == "__main__":
    sys.exit(run("sample", sys.argv[1:]))
