"""Predict and score every labelled image with the members that never saw its scene, as a Ray job.

ray job submit --working-dir . -- python jobs/crossval.py CONFIG.yaml [--set KEY=VALUE ...]
"""

import sys

from kp_ray.cli.main import main

if __name__ == "__main__":
    main(["crossval", *sys.argv[1:]])
