"""Campaign files: each mistake is one line that names the setting, and a written file is read back unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from equiscreen.campaigns import RankSettings
from equiscreen.pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: 5", "sources: must be a list of strings"),
        ("sources: [[a.cif]]", "sources.0: must be a string"),
        ('sources: [""]', "sources.0: must not be empty"),
        ("sources: [a.cif]\nsources: [b.cif]", "cannot be read: the key 'sources' is given twice (line 2)"),
        ("sources: [a.cif]\nrelaxation: {fmax: 1, fmax: 2}", "cannot be read: the key 'fmax' is given twice (line 2)"),
        ("sources: [a.cif]\nlimit: 99999999999999999999", "limit: input should be less than or equal to"),
        ("sources: [a.cif]\nmodel: 7", "model: must be a string"),
        ("sources: [a.cif]\nscheme: mp-uncorected", "did you mean 'mp-uncorrected'"),
        ("sources: [a.cif]\nrelaxation: 5", "relaxation: must hold settings"),
        ("sources: [a.cif]\nrelaxation: {fmx: 0.1}", "relaxation: unknown setting 'fmx'; did you mean 'fmax'"),
        ("sources: [a.cif]\nrelaxation: {fmax: .nan}", "fmax is nan; it must be a finite number"),
        ("sources: [a.cif]\nrelaxation: {pressure: .inf}", "pressure is inf; it must be a finite number"),
    ],
)
def test_a_mistake_in_a_campaign_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        RankSettings.load(file)
    assert str(caught.value).startswith(f"{file} " if message.startswith("cannot be read") else f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_campaign_file_keeps_the_names_that_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7net-0").mkdir()  # the name of the weights takes precedence
    (tmp_path / "results").mkdir()
    references = ["mp", "optimade:mp", "https://host/a.json", "b.json"]
    settings = RankSettings.of(sources=["a.cif"], references=references)
    settings.save(tmp_path / "results/campaign.yaml")
    again = RankSettings.load("results/campaign.yaml")
    assert again.model == "7net-0"
    assert [*again.references[:3]] == references[:3]
    assert Path(again.references[3]).resolve() == tmp_path / "b.json"
    assert Path(again.sources[0]).resolve() == tmp_path / "a.cif"
