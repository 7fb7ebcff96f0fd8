"""`python -m deploy.audit`: known vulnerabilities of the locked packages, by pip-audit.

pip-audit by itself ends with 0 where its database does not know a package, which is also its answer where an index
stands in for the database. Here that is a failure.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LIST = "deploy/advisories.md has what was known on its date"


def main(arguments: list[str]) -> int:
    """Return 0 if every package was looked up and none has a known vulnerability.

    Args:
        arguments: further ones of pip-audit, such as `--vulnerability-service osv`.
    """
    if importlib.util.find_spec("pip_audit") is None:
        print("error: pip-audit is not installed. Remedy: make audit", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "pip_audit", "--strict", "--disable-pip", "--require-hashes"]
    done = subprocess.run(
        [*command, "-r", str(ROOT / "requirements.lock"), *arguments], capture_output=True, text=True, check=False
    )
    print(done.stdout, end="")
    if done.returncode == 0:
        return 0
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    if done.stdout.strip() and "Fix Versions" in done.stdout:
        print("Remedy: raise the version in constraints.txt, then python -m deploy.lock", file=sys.stderr)
        return 1
    remedy = "give this machine a way to the database, or try --vulnerability-service osv"
    print(f"error: the packages were not looked up ({last[:300]}). Remedy: {remedy}; {_LIST}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
