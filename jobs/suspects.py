"""Rank the labels that are probably wrong, as a Ray job.

ray job submit --working-dir . -- python jobs/suspects.py CONFIG.yaml [--set KEY=VALUE ...]
"""

import sys

from kp_ray.cli.main import main

if __name__ == "__main__":
    main(["suspects", *sys.argv[1:]])
