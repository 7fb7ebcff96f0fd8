"""`python -m altdiffusion.cli`: the `altdiffusion` command where it is not installed."""

from altdiffusion.cli import run

if __name__ == "__main__":
    run()
