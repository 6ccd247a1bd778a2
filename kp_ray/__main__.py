"""`python -m kp_ray`: the command line."""

from kp_ray.cli.main import main

if __name__ == "__main__":
    main()
