"""DTLS with peers whose certificate is of RSA, as GStreamer's is."""

from typing import Any

from aiortc import RTCPeerConnection

#: aiortc's own, and the same with RSA: which of them is used is decided by the certificate of the DTLS server, so that
#: with aiortc's alone our client side could only meet servers with one of ECDSA.
CIPHERS = b":".join(
    b"ECDHE-%s-%s" % (kind, cipher)
    for kind in (b"ECDSA", b"RSA")
    for cipher in (b"AES128-GCM-SHA256", b"CHACHA20-POLY1305", b"AES128-SHA", b"AES256-SHA")
)


def take_rsa(connection: RTCPeerConnection) -> None:
    """Have a connection that has not begun take a peer's certificate of RSA, too."""
    for certificate in connection._RTCPeerConnection__certificates:
        create = certificate._create_ssl_context

        def widened(srtp_profiles: list, create=create) -> Any:
            context = create(srtp_profiles)
            context.set_cipher_list(CIPHERS)
            return context

        certificate._create_ssl_context = widened
