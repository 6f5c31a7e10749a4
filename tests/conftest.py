from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import settings

import plugin

# Decoding and face detection take as long as the machine is busy; that is no failure.
settings.register_profile("ifmdm", deadline=None, print_blob=True)
settings.load_profile("ifmdm")


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with the bundled portraits and voice."""
    return Path(plugin.__file__).parent / "assets"


@pytest.fixture(scope="session")
def ada(assets: Path) -> np.ndarray:
    """The pixels of a bundled portrait, (512, 512, 3) uint8 RGB."""
    return cv2.cvtColor(cv2.imread(str(assets / "portraits" / "ada.jpg")), cv2.COLOR_BGR2RGB)
