"""Pictures that are missing here and there, as on a machine that is too busy, do not make the others larger."""

import numpy as np
import pytest

from transports.webrtc.encoders import VideoEncoder, to_i420


@pytest.mark.parametrize("codec", ["vp8", "h264"])
@pytest.mark.parametrize("missing", ["none", "some", "stretches"])
def test_the_bitrate_holds_where_pictures_are_missing(codec, missing):
    rng = np.random.default_rng(0)
    large = [rng.integers(0, 128, (32, 32, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(15)]
    count, bitrate = 225, 2_000_000
    taken = {
        "none": np.ones(count, bool),
        "some": rng.random(count) < 0.6,
        "stretches": np.repeat(rng.random(count // 5) < 0.6, 5),
    }[missing]
    encoder = VideoEncoder(codec, 256, 256, 45, bitrate)
    bits = 0
    for index in np.flatnonzero(taken):
        image = large[index // 15] + rng.integers(0, 60, (256, 256, 3), np.uint8)
        pictures = encoder.encode(to_i420(image), int(index), False)
        assert [picture.packet.pts for picture in pictures] == [2000 * index]
        bits += 8 * sum(picture.size for picture in pictures)
    assert 0.7 * taken.mean() < bits / (count / 45) / bitrate < 1.3
