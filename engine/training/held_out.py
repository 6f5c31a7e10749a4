"""Stills that training never sees, so that `ifmdm evaluate --stills` shows strangers."""

from pathlib import Path

#: File names without their endings, and what each is there for.
HELD_OUT = {
    "female_22": "young, smile with teeth, pale against a bright street",
    "female_24": "turban, old, very dark skin, deep wrinkles",
    "female_32": "open smile, dark skin",
    "female_42": "turned, smile with teeth, hand at the cheek",
    "female_43": "scarf close around the whole face",
    "female_48": "open smile with teeth, near to the camera",
    "female_54": "hand at the chin",
    "female_65": "three-quarter view, dark skin",
    "female_66": "nearly in profile, in shadow",
    "female_69": "glasses, old, open smile",
    "female_73": "fur hat, tilted, half in shadow",
    "female_79": "head scarf, very old",
    "female_82": "three-quarter view, black scarf",
    "female_87": "three-quarter view, hair over an eye",
    "male_04": "light skin, lips parted, hard sun",
    "male_05": "young, hair over the forehead, thin moustache",
    "male_11": "head scarf, grey beard and moustache",
    "male_15": "cap, its shadow over the eyes",
    "male_23": "thick moustache over the lip, head scarf",
    "male_32": "light skin, red beard, wild hair",
    "male_49": "very dark skin, near to the camera",
    "male_59": "full grey beard, tilted",
    "male_67": "white beard, teeth, turned, dark skin",
    "male_69": "very old, open mouth with teeth",
}


def held_out(name: str) -> bool:
    """Whether a still, by its path or file name, must not be trained on."""
    return Path(name).stem in HELD_OUT
