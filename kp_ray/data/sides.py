"""Find pairs of left and right keypoints, by their names, that are missing from the flip pairs."""

import json
import re
from typing import Literal

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError
from kp_ray.keypoints import Skeleton

_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l", "lt": "rt", "rt": "lt"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^A-Za-z0-9]+")
"""A word of a name in snake_case, camelCase or with any separator; digits and separators are words too."""


def unpaired_sides(skeleton: Skeleton) -> list[tuple[str, str]]:
    """List the pairs of names that differ only in left and right and are not a flip pair.

    Names are compared word by word. Examples of pairs: left_eye and right_eye, LEye and REye, "eye (l)" and "eye (r)".

    Returns:
        (left, right) names in the order of the skeleton.
    """
    names_by_words = {_words(name): name for name in skeleton.names}
    flip_pairs = {frozenset(pair) for pair in skeleton.flip_pairs}
    missing_pairs = []
    for words, left in names_by_words.items():
        for index, word in enumerate(words):
            if word in ("left", "l", "lt"):
                right = names_by_words.get((*words[:index], _OTHER_SIDE[word], *words[index + 1 :]))
                if right and frozenset((left, right)) not in flip_pairs:
                    missing_pairs.append((left, right))
    return missing_pairs


def _words(name: str) -> tuple[str, ...]:
    """Split a name into lower-case words: "LEye2" gives ("l", "eye", "2")."""
    spaced_name = re.sub(r"(?<![A-Za-z])([LR])(?=[A-Z][a-z])", r"\1 ", name)  # L of LEye is a word
    return tuple(word.lower() for word in _WORD.findall(spaced_name) if word.strip())


def check_flips(config: Config, skeleton: Skeleton, verb: Literal["train", "tune", "predict"]) -> None:
    """Refuse settings with which a verb mirrors images, if a left and a right keypoint are not a flip pair.

    Args:
        config: the run's configuration.
        skeleton: keypoints of the run.
        verb: train mirrors images by `train.flip`, tune by `tune.flips`, predict by `predict.tta`.

    Raises:
        ConfigError: names and flip pairs contradict each other.
    """
    is_on, setting, fix = {
        "train": (config.train.flip, "train.flip", "set train.flip: false"),
        "tune": (True in config.tune.flips, "tune.flips", "set tune.flips: [false]"),
        "predict": ("flip" in config.predict.tta, "predict.tta", "take flip out of predict.tta"),
    }[verb]
    missing_pairs = unpaired_sides(skeleton) if is_on else []
    if not missing_pairs:
        return
    left, right = missing_pairs[0]
    more = f" (and {len(missing_pairs) - 1} more)" if len(missing_pairs) > 1 else ""
    missing_names = {name for pair in missing_pairs for name in pair}
    kept_pairs = [pair for pair in skeleton.flip_pairs if not set(pair) & missing_names]
    pairs = [list(pair) for pair in (*kept_pairs, *missing_pairs)]
    raise ConfigError(
        f"skeleton.flip_pairs: {left} and {right}{more} are not a flip pair, so {setting} would mirror images without "
        f"exchanging them: {fix}, or set skeleton.flip_pairs: {json.dumps(pairs, ensure_ascii=False)}"
    )
