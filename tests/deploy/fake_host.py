"""A host that Ray's node updater reaches by ssh and rsync: the commands run here, as an ordinary user.

`ssh` and `rsync` are answered by this process; what they start finds small programs in place of docker, sudo, aws and
ray, which write down how they were called. Files are real: what the user may not write is refused.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

NOBODY = 65534
_DOCKER = r"""#!/bin/bash
echo "docker $*" >> "$CALLS"
case "$1" in
  inspect) case "$*" in *State.Running*) test -e "$STATE/running" && echo true || echo false;;
           *Env*) echo '["PATH=/usr/local/bin:/usr/bin:/bin"]';; *Mounts*) echo '[]';; *) echo "$IMAGE";; esac;;
  run) touch "$STATE/running";;
  exec) shift; while [ "${1#-}" != "$1" ]; do shift; done; shift
        cd "$CONTAINER_HOME" && HOME="$CONTAINER_HOME" exec "$@";;
  *) true;;
esac
"""
_NOTED = '#!/bin/bash\necho "{name} $* RAY_AUTH_MODE=$RAY_AUTH_MODE XDG_CACHE_HOME=$XDG_CACHE_HOME" >> "$CALLS"\n'


class FakeHost:
    """What `process_runner` is to Ray's command runners: `subprocess` on another machine."""

    CalledProcessError = subprocess.CalledProcessError
    TimeoutExpired = subprocess.TimeoutExpired
    PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT

    def __init__(self, folder: Path, image: str) -> None:
        """Lay the host out in an empty folder that every user can reach."""
        self.home, self.container_home, self.bin = folder / "home", folder / "container", folder / "bin"
        self._calls = folder / "calls"
        for path in (self.home, self.container_home, self.bin):
            path.mkdir(parents=True)
        self._calls.touch()
        for home in (self.home, self.container_home):  # login shells begin with the PATH of /etc/profile
            (home / ".bashrc").write_text(f'export PATH="{self.bin}:$PATH"\n')
        self.env = {
            "HOME": str(self.home),
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "CALLS": str(self._calls),
            "STATE": str(self.home),
            "IMAGE": image,
            "CONTAINER_HOME": str(self.container_home),
        }
        self._program("docker", _DOCKER)
        for name in ("ray", "sudo", "chown", "aws", "lsblk", "nvidia-smi"):
            self._program(name, _NOTED.format(name=name))
        for path in (folder, self.home, self.container_home, self._calls):
            os.chown(path, NOBODY, NOBODY)
        folder.chmod(0o755)

    def _program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """How docker, sudo, aws and ray were called, in order."""
        return self._calls.read_text().splitlines()

    def check_call(self, command: Any, *_: Any, **__: Any) -> int:
        self.check_output(command)
        return 0

    def check_output(self, command: Any, *_: Any, **__: Any) -> bytes:
        words = shlex.split(command) if isinstance(command, str) else list(command)
        if words[0] == "rsync":
            return self._copy(words[-2], words[-1])
        host = next(place for place, word in enumerate(words) if "@" in word and not word.startswith("-"))
        return self._run(" ".join(words[host + 1 :]))  # as sshd does

    def _run(self, text: str) -> bytes:
        done = subprocess.run(
            ["bash", "-c", text], env=self.env, cwd=self.home, capture_output=True, check=False, user=NOBODY
        )
        if done.returncode:
            print(f"{text}\n{done.stderr.decode()}")  # Ray itself keeps it to itself
            raise subprocess.CalledProcessError(done.returncode, text, done.stdout, done.stderr)
        return done.stdout

    def _copy(self, source: str, target: str) -> bytes:
        """Copy as rsync does: as the user, with the file's mode."""
        path = target.partition(":")[2]
        path = f"{self.home}{path[1:]}" if path.startswith("~") else path
        staged = self.home / ".staged"
        shutil.copy(source, staged)
        os.chown(staged, NOBODY, NOBODY)
        try:
            self._run(f"cp -p {staged} {path}")
        finally:
            staged.unlink()
        mounted = path.partition("tmp_mount/")[2].partition("/")[2]
        if mounted:  # docker run binds it into the container
            self._run(f"mkdir -p $(dirname {self.container_home}/{mounted.replace('~/', '')}) && "
                      f"cp -p {path} {self.container_home}/{mounted.replace('~/', '')}")  # fmt: skip
        return b""
