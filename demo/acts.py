"""Names of the demo's acts, which are also the names of their folders."""

from __future__ import annotations

from enum import StrEnum


class Act(StrEnum):
    """An independent part of the demo."""

    PUBLISHED = "published"  # published weights; nothing is trained
    TRAIN = "train"  # trains a network on labels from EMT, and checks it against EMT
