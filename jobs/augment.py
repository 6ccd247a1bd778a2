"""Write the store as a Ray job.

ray job submit --working-dir . -- python jobs/augment.py CONFIG.yaml [--set KEY=VALUE ...]
"""

import sys

from kp_ray.cli.main import main

if __name__ == "__main__":
    main(["augment", *sys.argv[1:]])
