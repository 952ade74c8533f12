"""Certificates for encrypted connections to the browser view."""

from __future__ import annotations

import contextlib
import shlex
import ssl
from pathlib import Path

from refusion_edge.errors import InputError
from refusion_edge.files import read_file

_MOST_PEM_BYTES = 1 << 20
# What OpenSSL says of a key that belongs to another certificate, of the same kind or of another.
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Read what a server needs for encrypted connections, of TLS 1.2 or later.

    Args:
        certificate: Its certificate with the chain, in PEM.
        key: The key of the certificate, in PEM without a passphrase.

    Raises:
        InputError: They cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # which costs the server more than the client
    _, key_data = (read_file(path, kind="certificate or key", most_bytes=_MOST_PEM_BYTES) for path in (certificate, key))
    try:
        # The empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        reason = error.reason or ""
        if b"ENCRYPTED" in key_data:
            problem = f"the key {key} has a passphrase"
            remedy = f"remove it: openssl pkey -in {shlex.quote(str(key))} -out NEW.pem"
        elif reason in _MISMATCHES:
            problem = f"the key {key} does not belong to the certificate {certificate}"
            remedy = "give the full chain first and then the key that belongs to it"
        elif reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
            problem = f"the certificate {certificate} is too weak ({_words(reason)})"
            remedy = "make one with a key of at least 2048 bits (RSA) or 256 bits (EC)"
        else:
            problem = f"{certificate} and {key} are not a certificate and its key in PEM"
            remedy = "give the full chain first and then the key that belongs to it"
        raise InputError(problem, remedy) from error
    return context


def doubt_about(certificate: Path, server: ssl.SSLContext) -> str:
    """Tell why clients will not trust a certificate now, such as that it has expired.

    Whether they know who signed it depends on them, and is not considered.

    Args:
        certificate: The certificate.
        server: What ``server_context`` has made of it.

    Returns:
        The reason in OpenSSL's words; empty if there is none.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    try:
        client.load_verify_locations(certificate)
        for end in (*ends, ends[0]):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLError as error:
        return getattr(error, "verify_message", "") or _words(error.reason or "unknown")
    return ""


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()
