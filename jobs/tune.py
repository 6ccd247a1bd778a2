"""Search for better training settings as a Ray job.

ray job submit --working-dir . -- python jobs/tune.py CONFIG.yaml [--set KEY=VALUE ...]
"""

import sys

from kp_ray.cli.main import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
