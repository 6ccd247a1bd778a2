"""Run the whole pipeline as a Ray job.

ray job submit --working-dir . -- python jobs/pipeline.py CONFIG.yaml [--set KEY=VALUE ...]
"""

import sys

from kp_ray.cli.main import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
