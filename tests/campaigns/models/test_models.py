"""Models by name: names, hashes, the cache, the bundled package, and the verbs that take them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from equiscreen import __version__
from equiscreen.campaigns import model_file
from equiscreen.campaigns.models.cache import cache_folder, made_once
from equiscreen.campaigns.models.catalog import CATALOG, find_model
from equiscreen.campaigns.models.resolve import published_weights
from equiscreen.export import OnnxPotential
from equiscreen.export.runtime.file_validation import with_checksum
from equiscreen.pipeline.errors import CheckpointError, EquiscreenError, ModelFileError

from ...conftest import CUTOFF, ROOT

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
FILE = f"7net-0.{find_model('7net-0').sha256[:12]}.equiscreen-{__version__}.onnx"
CONTENT = with_checksum(b"\x08\x08")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache: Path, content: bytes = CONTENT) -> Path:
    """Put a file in the place of 7net-0 in the cache."""
    return made_once(cache / "models" / FILE, lambda: content, lambda _: None)


def bundled(folder: Path, content: bytes = CONTENT, digest: str | None = None) -> Path:
    """Write a package like `equiscreen-models`."""
    package = folder / "equiscreen_models"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "7net-0.onnx").write_bytes(content)
    entry = {
        "name": "7net-0",
        "file": "7net-0.onnx",
        "sha256": digest or hashlib.sha256(content).hexdigest(),
        "weights_sha256": find_model("7net-0").sha256,
    }
    (package / "manifest.json").write_text(json.dumps({"schema": "equiscreen-models/1", "models": [entry]}))
    return package / "7net-0.onnx"


def test_names_of_the_catalogue() -> None:
    assert len({model.sha256 for model in CATALOG.values()}) == 9
    for name, model in CATALOG.items():
        assert find_model(name) is find_model(f"{name}@{model.sha256[:8].upper()}") is model
        assert model.published.packaged or model.published.url.startswith("https://")
        measured = {"edges_per_second", "hull_error_eV_per_atom"}  # not for every model
        assert None not in [value for key, value in model.to_dict().items() if key not in measured]
    assert find_model("nequix-mp-1-pft-nocotrain") is find_model("nequix-mp-1-pft-no-cotrain")
    assert find_model("7net-mf-0") is find_model("7net-mf-0", "PBE") is find_model("7net-mf-0/PBE")


@pytest.mark.parametrize(
    ("name", "modality", "told"),
    [
        ("7net-1", None, "did you mean '7net-0'"),
        ("zzz", None, "choose 7net-0, "),
        ("7net-1@7052cb42", None, "did you mean '7net-0'"),
        ("7net-0@00000000", None, "the SHA-256 of 7net-0 is 7052cb42"),
        ("7net-0@7052", None, "at least 8"),
        ("7net-0@", None, "at least 8"),
        ("7net-0@7052cb4z", None, "at least 8"),
        ("7net-0/PBE", None, "only one fidelity"),
        ("7net-0", "PBE", "only one fidelity"),
        ("7net-mf-0/", None, "unknown fidelity ''"),
        ("7net-mf-0/PEB", None, "did you mean 'PBE'"),
        ("7net-mf-0/PBE", "R2SCAN", "`--modality` gives R2SCAN"),
        ("none.ckpt", None, "none.ckpt: no such file"),
        ("none.onnx", "PBE", "leave out `modality`"),
    ],
)
def test_wrong_names_are_told(name: str, modality: str | None, told: str) -> None:
    with pytest.raises(ModelFileError) as error:
        model_file(name, modality=modality)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_onnx_file_is_taken_as_it_is(tmp_path: Path) -> None:
    assert model_file("none.onnx") == Path("none.onnx")
    (tmp_path / "any").touch()
    assert model_file(tmp_path / "any") == tmp_path / "any"


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EQUISCREEN_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "equiscreen"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "equiscreen"


OTHER = with_checksum(b"\x08\x07")  # intact, but another model


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], b"\x00" + CONTENT[1:], OTHER])
def test_a_damaged_file_of_the_cache_is_made_again(cache: Path, damaged: bytes) -> None:
    told: list[str] = []
    path = cached(cache)
    path.write_bytes(damaged)
    made_once(path, lambda: CONTENT, told.append)
    assert path.read_bytes() == CONTENT
    assert "damaged" in told[0]
    assert made_once(path, lambda: b"made again", told.append).read_bytes() == CONTENT


def test_two_processes_make_a_file_once(cache: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from equiscreen.campaigns.models.cache import made_once; "
        "path = Path(sys.argv[1]); "
        "make = lambda: (time.sleep(0.3), print('made'), bytes.fromhex(sys.argv[2]))[-1]; "
        "made_once(path, make, lambda text: None)"
    )
    words = [sys.executable, "-c", script, str(cache / "a" / "m.onnx"), CONTENT.hex()]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0].strip() for process in running) == ["", "made"]


def test_a_cache_that_cannot_be_written_is_told(cache: Path) -> None:
    cache.write_text("a file")
    for folder in (cache, Path("/proc/nowhere")):  # whose errors are "not a directory" and "no such file"
        with pytest.raises(EquiscreenError, match=r"the cache cannot be used .*; set EQUISCREEN_CACHE to a folder"):
            made_once(folder / "models" / "m.onnx", lambda: CONTENT, lambda _: None)


def test_the_bundled_file_is_used_after_its_hash_is_checked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(cache)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = bundled(tmp_path)
    assert model_file("7net-0@7052cb42") == path
    shutil.rmtree(path.parent)
    bundled(tmp_path, digest="0" * 64)
    with pytest.raises(ModelFileError, match="damaged: its SHA-256 does not match; reinstall equiscreen-models"):
        model_file("7net-0")


def test_models_are_resolved_without_torch(cache: Path) -> None:
    """Models in the cache need no PyTorch; for others, the error names what to install."""
    path = cached(cache)
    script = """
import sys
for name in ("torch", "onnx", "e3nn", "lightning", "onnxruntime"):
    sys.modules[name] = None
from equiscreen.campaigns import model_file
from equiscreen.pipeline.errors import ModelFileError
print(model_file("7net-0"))
for name in ("nequix-mp-1", "7net-mf-0/R2SCAN"):
    try:
        model_file(name)
    except ModelFileError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines[0] == str(path), done.stderr
    assert len(lines) == 3
    assert all("pip install 'equiscreen[rank]'" in line for line in lines[1:])


def test_the_verb_models(command_line: CommandLine, cache: Path) -> None:
    path = cached(cache)
    listed = command_line("models")
    assert (listed.returncode, listed.stderr) == (0, "")
    for model in CATALOG.values():
        assert model.name in listed.stdout
        assert all(str(model.to_dict()[key]) in listed.stdout for key in ("good_for", "licence", "sha256", "source"))
    content = json.loads(command_line("models", "--json").stdout)
    assert [model["name"] for model in content["models"]] == [*CATALOG]
    assert [model["file"] for model in content["models"] if model["ready"]] == [str(path)]
    assert json.loads(command_line("models", "7net-0", "--json").stdout) == content["models"][0]
    wrong = command_line("models", "7net-1")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (1, 1)


def test_verbs_take_names(
    command_line: CommandLine, cache: Path, tmp_path: Path, exported: Callable[[str], Path]
) -> None:
    cached(cache, with_checksum(exported("float32").read_bytes()))  # a small model in the place of 7net-0
    (tmp_path / "POSCAR").write_text("Al\n4.05\n0 .5 .5\n.5 0 .5\n.5 .5 0\nAl\n1\ndirect\n0 0 0\n")
    words = ("--out", tmp_path / "g.zarr", "--scheduler", "threads")
    assert command_line("featurize", tmp_path / "POSCAR", "--model", "7net-0", *words).returncode == 0
    for verb in ("screen", "relax"):
        wrong = command_line(verb, tmp_path / "g.zarr", "--model", "7net-0@00000000", "--out", tmp_path / "s.zarr")
        assert "the SHA-256 of 7net-0 is" in wrong.stderr
    words = ("--out", tmp_path / "s.zarr", "--scheduler", "threads")
    done = command_line("screen", tmp_path / "g.zarr", "--model", "7net-0@7052cb42", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_checkpoint_is_exported_once_by_its_content(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    path = model_file(checkpoint)
    assert path.parent == cache / "models"
    assert OnnxPotential.load(path, threads=1).cutoff == CUTOFF
    written = path.stat().st_mtime_ns
    assert model_file(str(checkpoint.parent)) == path  # the run folder
    assert path.stat().st_mtime_ns == written
    with pytest.raises(CheckpointError, match=r"no model.ckpt in this folder"):
        model_file(tmp_path)


@pytest.mark.slow
def test_a_name_gives_the_file_that_import_and_export_give(cache: Path, command_line: CommandLine) -> None:
    path, checkpoint = model_file("7net-0"), cache / "7net-0.ckpt"
    assert command_line("import", "7net-0", "--out", checkpoint).returncode == 0
    assert command_line("export", checkpoint, "--out", cache / "7net-0.onnx").returncode == 0
    assert path.read_bytes() == (cache / "7net-0.onnx").read_bytes()


@pytest.mark.slow
def test_downloaded_weights_are_exported(cache: Path, data: Path) -> None:
    """A file that the user has put at the place that the error names is used without a connection."""
    (cache / "weights").mkdir(parents=True)
    shutil.copy(data / "weights" / "nequix-mp-1.nqx", cache / "weights")
    potential = OnnxPotential.load(model_file("nequix-mp-1"), threads=1)
    assert potential.metadata.origin["name"] == "nequix-mp-1"
    assert potential.cutoff == find_model("nequix-mp-1").published.cutoff


def test_import_finds_weights_by_the_names_of_the_catalogue(cache: Path, data: Path) -> None:
    assert published_weights("7net-0@7052cb42") == ("7net-0", None)
    assert published_weights("7net-mf-0/R2SCAN") == ("7net-mf-0", "R2SCAN")
    assert published_weights("7net-mf-0", "R2SCAN") == ("7net-mf-0", "R2SCAN")
    assert published_weights("mine.pth", "PBE") == ("mine.pth", "PBE")
    (cache / "weights").mkdir(parents=True)
    file = shutil.copy(data / "weights" / "nequix-mp-1.nqx", cache / "weights")
    assert published_weights("nequix-mp-1") == (Path(file), None)
    with pytest.raises(ModelFileError, match="the SHA-256 of nequix-mp-1-pft-nocotrain is c191f720"):
        published_weights("nequix-mp-1-pft-nocotrain@00000000")


@pytest.mark.slow
def test_import_uses_downloaded_weights(cache: Path, data: Path, tmp_path: Path, command_line: CommandLine) -> None:
    (cache / "weights").mkdir(parents=True)
    shutil.copy(data / "weights" / "nequix-mp-1.nqx", cache / "weights")
    done = command_line("import", "nequix-mp-1@1647af8e", "--out", tmp_path / "n.ckpt")
    assert done.returncode == 0, done.stderr
    assert "n.ckpt: 89 elements, cutoff 6 angstrom" in done.stdout


@pytest.mark.slow
def test_the_wheel_works_without_torch(tmp_path: Path) -> None:
    """Acceptance: `equiscreen[cpu]` and `equiscreen-models`, in an environment without PyTorch, find 7net-0."""
    build = [sys.executable, ROOT / "tools/models_wheel/build.py", "--out", tmp_path]
    assert subprocess.run(build, check=False).returncode == 0
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", wheel, f"{ROOT}[cpu]"]
    assert subprocess.run(install, check=False).returncode == 0
    script = (
        "import importlib.util as u; from equiscreen.campaigns import model_file; "
        "from equiscreen.export import OnnxPotential; path = model_file('7net-0'); "
        "print(path, len(OnnxPotential.load(path).elements), u.find_spec('torch'))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    path, elements, torch = done.stdout.split()
    assert (Path(path).name, elements, torch) == ("7net-0.onnx", "89", "None"), done.stderr
    assert "Copyright (c)" in (Path(path).parent / "LICENSE").read_text()
