"""Predict the test images with every member, as a Ray job.

ray job submit --working-dir . -- python jobs/predict.py CONFIG.yaml [--set KEY=VALUE ...]
"""

import sys

from kp_ray.cli.main import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
