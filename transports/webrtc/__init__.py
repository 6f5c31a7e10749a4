"""The head over WebRTC."""

import logging

from transports.webrtc.private import missing

for _part in missing():
    logging.getLogger(__name__).warning(
        f"{_part} is not there: lips may lag behind the voice, and speakers come late; install the versions of "
        "constraints.txt"
    )
