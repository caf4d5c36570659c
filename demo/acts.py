"""The names of the demo's acts; they are also the names of their folders."""

from __future__ import annotations

from enum import StrEnum


class Act(StrEnum):
    """A part of the demo that stands by itself."""

    PUBLISHED = "published"  # published weights, nothing is trained
    TRAIN = "train"  # a network of its own, with EMT as teacher and judge
