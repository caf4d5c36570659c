"""Files by others in the repository are unmodified, and their licences lie beside them."""

from __future__ import annotations

import hashlib
import tomllib

from ...conftest import ROOT

ASSETS = ROOT / "screening" / "reporting" / "assets"
OWN = {"page.css", "page.js", "THIRD_PARTY.toml"}


def test_every_file_by_others_is_listed_and_unmodified() -> None:
    listed = tomllib.loads((ASSETS / "THIRD_PARTY.toml").read_text())
    found = {path.name for path in ASSETS.iterdir()} - OWN
    assert {name for name in found if not name.startswith("LICENSE-")} == set(listed)
    for name, facts in listed.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == facts["sha256"], name
        assert {"name", "version", "source", "licence", "copyright"} <= set(facts)


def test_their_licences_are_part_of_the_package() -> None:
    listed = tomllib.loads((ASSETS / "THIRD_PARTY.toml").read_text())
    texts = "".join(path.read_text() for path in ASSETS.glob("LICENSE-*"))
    assert {facts["copyright"] for facts in listed.values() if facts["copyright"] not in texts} == set()
