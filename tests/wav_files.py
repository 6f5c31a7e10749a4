"""WAV files for the tests, byte by byte: with headers as speech synthesisers write them, right and wrong."""

import struct

#: Behind the two bytes of the format, in every GUID of WAVE_FORMAT_EXTENSIBLE.
EXTENSIBLE_GUID = bytes.fromhex("000000001000800000aa00389b71")


def wav(
    data: bytes, tag: int = 1, bits: int = 16, rate: int = 24_000, channels: int = 1, size: int | None = None,
    extensible: bool = False, before: bytes = b"", after: bytes = b"",
) -> bytes:  # fmt: skip
    """A WAV file. size: what the header says of its data, if it is wrong; before, after: chunks around it."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, channels, rate, rate * block, block, bits)
    if extensible:
        form += struct.pack("<HHIH", 22, bits, (1 << channels) - 1, tag) + EXTENSIBLE_GUID
    elif tag != 1:
        form += b"\0\0"
    after = b"\0" * (len(data) % 2) + after
    told = len(data) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + before + b"data" + struct.pack("<I", told) + data + after
    return b"RIFF" + struct.pack("<I", len(body) if size is None else min(size + 36, 0xFFFFFFFF)) + body
