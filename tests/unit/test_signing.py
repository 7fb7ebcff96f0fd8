"""Signed images: read back by c2pa, with a certificate chain of the test's own."""

from __future__ import annotations

import builtins
import datetime
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.documents.signing import ASSERTION, Signer, read_manifest
from altdiffusion.errors import AltDiffusionError
from altdiffusion.image_files.embed import MARK
from altdiffusion.image_files.extract import read_carried
from altdiffusion.image_files.phash import phash_rgb
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from tests.lineage_lake import SOURCE_IMAGE, publish
from tests.unit.test_file_search import DRAWN, MODEL, PROMPTS, encode_image, record, scene

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    certificates: str
    key: str


def usages(*, signing: bool) -> x509.KeyUsage:
    """Return the use of a key: signing data, or signing certificates."""
    return x509.KeyUsage(signing, False, False, False, False, not signing, not signing, False, False)


def made(folder: Path, key: Key, *, usage: Any = ExtendedKeyUsageOID.EMAIL_PROTECTION, days: int = 30) -> Pair:
    """Write a chain of an authority and a signing certificate, and the key of the latter."""
    now = datetime.datetime.now(datetime.UTC)
    authority = ec.generate_private_key(ec.SECP256R1())

    def builder(subject: str, public: Any, last: datetime.datetime) -> x509.CertificateBuilder:
        def named(name: str) -> x509.Name:
            attributes = (NameOID.COMMON_NAME, name), (NameOID.ORGANIZATION_NAME, "A test")
            return x509.Name([x509.NameAttribute(*one) for one in attributes])

        first = x509.CertificateBuilder(named("authority"), named(subject), public, x509.random_serial_number())
        return first.not_valid_before(min(now, last) - _DAY).not_valid_after(last)

    own = x509.SubjectKeyIdentifier.from_public_key
    root = builder("authority", authority.public_key(), now + 60 * _DAY)
    root = root.add_extension(x509.BasicConstraints(True, 0), True).add_extension(usages(signing=False), True)
    root = root.add_extension(own(authority.public_key()), False)
    leaf = builder("signer", key.public_key(), now + days * _DAY)
    leaf = leaf.add_extension(x509.BasicConstraints(False, None), True).add_extension(usages(signing=True), True)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([usage]), False).add_extension(own(key.public_key()), False)
    from_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    leaf = leaf.add_extension(from_issuer, False)
    pem = serialization.Encoding.PEM
    chain = [one.sign(authority, hashes.SHA256()).public_bytes(pem) for one in (leaf, root)]
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    folder.mkdir(exist_ok=True)
    pair = Pair(str(folder / "chain.pem"), str(folder / "key.pem"))
    Path(pair.certificates).write_bytes(b"".join(chain))
    Path(pair.key).write_bytes(private)
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return made(tmp_path_factory.mktemp("pair"), ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Return a dataset of two drawings with their records."""
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    rows = [
        {
            **record(n).image, "id": f"p{n}", "language": "en", "image": DRAWN[n], "image_format": "png",
            "image_sha256": files.sha256_hex(DRAWN[n]), "checkpoint": str(MODEL), "row_key": record(n).row_key,
            "perceptual_hash": phash_rgb(scene(n)),
        }
        for n in range(2)
    ]  # fmt: skip
    return publish(lake, "drawn", "generations", rows, [MODEL])


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_a_signed_image_states_what_made_it(pair: Pair, image_format: Any) -> None:
    number = 1  # whose prompt is Chinese
    image = encode_image(scene(number), image_format, record=record(number))
    signed = Signer(pair.certificates, pair.key).sign(image, "an image")
    found = read_manifest(signed, "an image")
    assert found is not None and found["faults"] == [] and found["issuer"] == "A test"
    action = found["assertions"]["c2pa.actions.v2"]["actions"][0]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", MARK)
    assert found["assertions"][ASSERTION] == json.loads(record(number).to_json())
    assert found["assertions"][ASSERTION]["image"]["prompt"] == PROMPTS[number]
    assert read_carried(signed) == read_carried(image)
    before, after = (np.asarray(Image.open(io.BytesIO(data))) for data in (image, signed))
    assert np.array_equal(before, after), "pixels"


@pytest.mark.parametrize(("find", "fault"), [("index", "hashedURI.mismatch"), ("rindex", "dataHash.mismatch")])
def test_a_change_after_signing_is_found(pair: Pair, find: str, fault: str) -> None:
    """The prompt is in the assertion first, and then in the record of the file itself."""
    signed = bytearray(Signer(pair.certificates, pair.key).sign(DRAWN[0], "an image"))
    place = getattr(signed, find)(b"a corgi")
    signed[place : place + 7] = b"a horse"
    found = read_manifest(bytes(signed), "an image")
    assert found is not None and f"assertion.{fault}" in found["faults"]


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["ES384", "Ed25519", "PS256"],
)
def test_other_keys_that_c2pa_allows_sign_too(tmp_path: Path, key: Key) -> None:
    pair = made(tmp_path, key)
    found = read_manifest(Signer(pair.certificates, pair.key).sign(DRAWN[0], "an image"), "an image")
    assert found is not None and found["faults"] == []


def test_a_dataset_is_signed_and_its_files_still_lead_to_the_lake(
    pair: Pair, drawn: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, folder = drawn.lake_uri, str(tmp_path / "signed")
    command = ["sign", "drawn", "--cert", pair.certificates, "--key", pair.key, "--lake", lake, "--output", folder]
    assert main(command) == 0
    assert "2 signed images" in capsys.readouterr().out
    assert sorted(path.name for path in Path(folder).iterdir()) == ["p0-0.png", "p1-1.png"]
    assert main(["lineage", "up", f"{folder}/p0-0.png", "--lake", lake]) == 0
    assert drawn.ref.short in capsys.readouterr().out
    assert main(command) == 2
    assert "no file is overwritten" in capsys.readouterr().err


def test_rows_that_were_taken_down_are_not_signed(pair: Pair, drawn: Version, tmp_path: Path) -> None:
    copied = str(tmp_path / "lake")
    files.copy_tree(drawn.lake_uri, copied)
    listed = tmp_path / "list"
    listed.write_text(f"sha256:{files.sha256_hex(DRAWN[0])}\n")
    assert main(["dataset", "remove", "drawn", "--hashes", str(listed), "--lake", copied]) == 0
    old, folder = f"drawn@{drawn.ref.digest}", tmp_path / "signed"
    command = ["sign", old, "--cert", pair.certificates, "--key", pair.key, "--lake", copied, "--output", str(folder)]
    assert main(command) == 0
    assert [path.name for path in folder.iterdir()] == ["p1-1.png"]


def test_only_images_with_their_own_record_are_signed(pair: Pair, tmp_path: Path) -> None:
    signer = Signer(pair.certificates, pair.key)
    with pytest.raises(AltDiffusionError, match="carries no record"):
        signer.sign(SOURCE_IMAGE, "a photo")
    forged = encode_image(scene(0), "jpg", record=record(0)).replace(b'"seed": 0', b'"seed": 7')
    with pytest.raises(AltDiffusionError, match="carries a record that was edited"):
        signer.sign(forged, "a forgery")
    with pytest.raises(AltDiffusionError, match="is already signed"):
        signer.sign(signer.sign(DRAWN[0], "an image"), "an image")
    text = tmp_path / "text"
    text.write_text("words")
    with pytest.raises(AltDiffusionError, match=r"carries no record|none of PNG"):
        signer.sign(text.read_bytes(), "a text")


def test_certificates_that_cannot_sign_are_refused_with_a_reason(tmp_path: Path, pair: Pair) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    cases = [
        (made(tmp_path / "server", key, usage=ExtendedKeyUsageOID.SERVER_AUTH), "extended key usage is none of"),
        (made(tmp_path / "old", key, days=-2), "it is valid from"),
        (made(tmp_path / "curve", ec.generate_private_key(ec.SECP256K1())), "C2PA does not allow"),
        (Pair(pair.certificates, made(tmp_path / "other", key).key), "is not the key of"),
        (Pair(pair.key, pair.key), "holds no certificate in PEM"),
        (Pair(pair.certificates, pair.certificates), "holds no private key in PEM"),
        (Pair(pair.certificates, str(tmp_path / "none")), "cannot be read"),
    ]
    secret = Path(cases[3][0].key).read_text().splitlines()[1]
    for case, problem in cases:
        with pytest.raises(AltDiffusionError, match=problem) as caught:
            Signer(case.certificates, case.key)
        assert secret not in str(caught.value)
    locked = tmp_path / "locked.pem"
    protected = serialization.BestAvailableEncryption(b"word")
    pkcs8 = serialization.PrivateFormat.PKCS8
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, protected))
    with pytest.raises(AltDiffusionError, match="is encrypted"):
        Signer(pair.certificates, str(locked))


def test_without_the_library_the_remedy_installs_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "c2pa":
            raise ImportError("No module named 'c2pa'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AltDiffusionError, match=r"pip install 'altdiffusion-platform\[c2pa\]'"):
        Signer(pair.certificates, pair.key)


def test_the_command_names_a_file_that_is_not_there(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sign", "a.png", "b.png", "--cert", pair.certificates, "--key", pair.key, "--output", "out"]
    assert main(command) == 2
    assert "file a.png: is not there" in capsys.readouterr().err
