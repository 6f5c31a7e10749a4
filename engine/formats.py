"""The kinds of picture files, and what is agreed on with the process that decodes them: without what decodes, which is
imported in that process alone."""

#: A picture of more is halved in width and height: the face is scaled to 512 pixels in the end.
MAX_DECODED = 25_000_000

_SIGNATURES = {
    "JPEG": lambda head: head.startswith(b"\xff\xd8\xff"),
    "PNG": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    "WebP": lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP",
}
# Pictures that people try; the answer names them, since "not a picture" would be no help.
_FOREIGN = {
    "GIF": lambda head: head.startswith(b"GIF8"),
    "BMP": lambda head: head.startswith(b"BM"),
    "TIFF": lambda head: head[:4] in (b"II*\0", b"MM\0*"),
    "HEIC": lambda head: head[4:8] == b"ftyp"
    and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
    "JPEG XL": lambda head: head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    "JPEG 2000": lambda head: head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")),
    "PSD": lambda head: head.startswith(b"8BPS"),
    "AVIF": lambda head: head[4:12] in (b"ftypavif", b"ftypavis"),
    "PDF": lambda head: head.startswith(b"%PDF"),
    "SVG": lambda head: b"<svg" in head,
}


class PictureError(ValueError):
    """A file that is no picture that we take: what is wrong and what to do, in words that follow its name."""


def kind_of(head: bytes) -> str:
    """By the first bytes of a file: JPEG, PNG or WebP. Raises PictureError for anything else."""
    for kind, matches in _SIGNATURES.items():
        if matches(head):
            return kind
    other = next((f"{kind} is not supported" for kind, matches in _FOREIGN.items() if matches(head)), "not a picture")
    raise PictureError(f"{other}; give a JPEG, PNG or WebP file")
