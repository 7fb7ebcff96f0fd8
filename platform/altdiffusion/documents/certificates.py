"""The certificate and the key that sign images: what C2PA demands of them, checked before anything is signed.

No error shows anything of a key. The checks need `cryptography`, which c2pa-python brings along.
"""

from __future__ import annotations

import datetime
from typing import Any

from altdiffusion.errors import AltDiffusionError

_USAGES = {"1.3.6.1.5.5.7.3.4": "emailProtection", "1.3.6.1.5.5.7.3.36": "documentSigning"}
"""Extended key usages of which C2PA demands one."""
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


def algorithm(certificates: str, chain: bytes, key: str, private: bytes) -> str:
    """Return the name of a key's algorithm in C2PA, after a check that certificate and key can sign images now.

    Args:
        certificates: path of the chain, for errors.
        chain: PEM, the signing certificate first.
        key: path of the private key, for errors.
        private: PEM.

    Raises:
        AltDiffusionError: one of the files cannot be used, or they do not belong together.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise AltDiffusionError(
            f"file {certificates}", "holds no certificate in PEM", "give the chain: the signing certificate first"
        ) from error
    try:
        loaded = serialization.load_pem_private_key(private, None)
    except TypeError:
        raise AltDiffusionError(
            f"file {key}", "is encrypted", "decrypt it first: openssl pkey -in KEY -out NEW"
        ) from None
    except ValueError:
        raise AltDiffusionError(f"file {key}", "holds no private key in PEM", "give the key of --cert") from None
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    der = serialization.Encoding.DER
    if loaded.public_key().public_bytes(der, public) != certificate.public_key().public_bytes(der, public):
        raise AltDiffusionError(f"file {key}", f"is not the key of {certificates}", "give the two files of one pair")
    _check_certificate(certificates, certificate)
    if isinstance(loaded, ec.EllipticCurvePrivateKey):
        if loaded.curve.name in _CURVES:
            return _CURVES[loaded.curve.name]
    elif isinstance(loaded, ed25519.Ed25519PrivateKey):
        return "ED25519"
    elif isinstance(loaded, rsa.RSAPrivateKey) and loaded.key_size >= 2048:
        return "PS256"
    raise AltDiffusionError(
        f"file {key}",
        "is a key that C2PA does not allow",
        "use ECDSA (P-256, P-384, P-521), Ed25519, or RSA of 2,048 bits",
    )


def _check_certificate(path: str, certificate: Any) -> None:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise unusable(path, f"it is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}")
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        allowed = {usage.dotted_string for usage in usages} & set(_USAGES)
    except x509.ExtensionNotFound:
        allowed = set()
    if not allowed:
        raise unusable(path, f"its extended key usage is none of {', '.join(_USAGES.values())}")


def unusable(path: str, problem: str) -> AltDiffusionError:
    """Return the error for a certificate that cannot sign images."""
    return AltDiffusionError(
        f"certificate {path}", f"cannot sign images: {problem}", "use a certificate that was issued for C2PA signing"
    )
