"""Train all members in one Ray job.

ray job submit --working-dir . -- python jobs/train.py CONFIG.yaml [--set KEY=VALUE ...]
"""

import sys

from kp_ray.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
