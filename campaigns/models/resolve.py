"""The ONNX file of a model: given as a file, by name, or as a checkpoint."""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ... import __version__
from ...pipeline.errors import ModelFileError
from ...pipeline.redaction import redact_urls
from .bundled import BUNDLED, DISTRIBUTION, bundled_file
from .cache import cache_folder, intact_model, made_once, usable
from .catalog import CatalogModel, find_model, is_known, unknown_model
from .downloads import fetch

_ONNX, _CHECKPOINT = ".onnx", ".ckpt"
# How `model.checkpoint` begins the name of its schema, which is the first entry of a checkpoint.
_SCHEMA, _SCHEMA_WITHIN = b"equiscreen-model/", 4096
_FOREIGN = (".pth", ".pt", ".nqx", ".zip", ".model")  # SevenNet, Nequix, NequIP packages, MACE


def model_file(
    model: str | Path,
    *,
    modality: str | None = None,
    progress: bool = False,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Path:
    """Return the path of a model's ONNX file.

    Published weights and checkpoints are exported, with all checks of an export, into the cache folder
    (`EQUISCREEN_CACHE`, otherwise the user's cache), and reused from there. The first use needs PyTorch, unless the
    package `equiscreen-models` holds the model.

    Example:
        >>> from equiscreen.campaigns import model_file
        >>> model_file("model.onnx")  # returned unchanged; a name such as "7net-0" is exported into the cache first
        PosixPath('model.onnx')

    Args:
        model: An ONNX file, whose path is returned unchecked; ``NAME[/FIDELITY][@HASH]`` of published weights, where
            HASH is the first 8 or more digits of their SHA-256; a checkpoint or run folder of equiscreen; or a
            SevenNet, Nequix, NequIP, Allegro or MACE weights file. A name takes precedence over a file; ``./NAME`` is
            always a file.
        modality: Fidelity of weights that have several, if the name does not give one.
        progress: Show the progress of downloads on standard error.
        note: Called with a message about the next step, if the step may take a minute.

    Raises:
        ModelFileError: The name, file or fidelity is unknown, the hash does not match, `model` is a URL, or a package
            is missing.
        UnreachableError: The weights cannot be downloaded.
        CheckpointError: The checkpoint is damaged or unfinished, or the weights cannot be imported.
        ExportError: The exported file failed one of its checks.
        EquiscreenError: The cache folder cannot be written.
    """
    if "://" in str(model):
        raise ModelFileError(
            f"{redact_urls(str(model))} is a URL, but only local paths can be used here; copy the file to this machine"
        )
    if isinstance(model, str) and is_known(model):
        return _published(find_model(model, modality), progress=progress, note=note)
    path = Path(model)
    suffix = path.suffix.lower()
    if path.is_file() and (suffix in _FOREIGN or _holds_weights(path)):
        return _foreign(path, modality, note)
    if modality is not None:
        raise ModelFileError(f"{model} has no fidelities to choose from; leave out `modality`")
    if path.is_dir() or (suffix == _CHECKPOINT and path.is_file()):
        return _trained(path, note)
    if not path.exists() and suffix != _ONNX:
        is_path = isinstance(model, Path) or suffix in (_CHECKPOINT, *_FOREIGN)
        raise ModelFileError(
            f"{path}: no such file or folder; check the path" if is_path else unknown_model(str(model))
        )
    return path


def published_weights(
    name: str,
    modality: str | None = None,
    *,
    progress: bool = False,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> tuple[str | Path, str | None]:
    """Return the weights of a model known by name, for `model.pretrained.load`.

    They are downloaded unless a package holds them.

    Args:
        name: ``NAME[/FIDELITY][@HASH]`` of published weights, or an alias; anything else is returned unchanged.
        modality: Fidelity, if the name gives none.
        progress: Show the progress of the download on standard error.
        note: Called with a message if the file of the weights is replaced, or if another process is downloading it.

    Returns:
        Name of the weights in the registry, or their file; and the fidelity, None if there is only one.

    Raises:
        ModelFileError: The fidelity is unknown, or the hash does not match.
        UnreachableError: The weights cannot be downloaded.
    """
    if not is_known(name):
        return name, modality
    model = find_model(name, modality)
    weights = model.published
    if weights.packaged:
        return weights.name, model.fidelity or None
    target = cache_folder() / "weights" / weights.file
    return fetch(weights.url, target, model.sha256, progress=progress, note=note), model.fidelity or None


def ready_file(model: CatalogModel) -> Path | None:
    """Return the model's ONNX file if the package `equiscreen-models` or the cache holds it, otherwise None.

    Raises:
        ModelFileError: The package is damaged.
        EquiscreenError: The cache folder cannot be found or read.
    """
    path = _cached(model.name, model.sha256)
    with usable(path):
        return bundled_file(model) or (path if intact_model(path) else None)


def _published(model: CatalogModel, *, progress: bool, note: Callable[[str], None]) -> Path:
    bundled = bundled_file(model)
    if bundled is not None:
        return bundled

    def make() -> bytes:
        wheel = f"; or, to do without PyTorch, install the wheel {DISTRIBUTION}, which `make models-wheel` builds"
        with _installed(model.name, wheel if model.name in BUNDLED else ""):
            from .exports import exported_weights  # noqa: PLC0415 - needs PyTorch
        weights, fidelity = published_weights(model.name, progress=progress, note=note)
        return exported_weights(weights, fidelity or "", note)

    return made_once(_cached(model.name, model.sha256), make, note)


def _holds_weights(path: Path) -> bool:
    """Whether a file holds weights of another code, by its content: an archive that equiscreen did not write.

    ONNX files are not archives, and a checkpoint of equiscreen names its schema.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if not pickles:
                return False
            with archive.open(pickles[0]) as file:
                return _SCHEMA not in file.read(_SCHEMA_WITHIN)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, zlib.error):
        return False


def _foreign(path: Path, modality: str | None, note: Callable[[str], None]) -> Path:
    """Return the ONNX file made from a SevenNet, Nequix, NequIP, Allegro or MACE weights file."""

    def make() -> bytes:
        with _installed(str(path)):
            from .exports import exported_weights  # noqa: PLC0415 - needs PyTorch
        return exported_weights(path, modality or "", note)

    name = f"{path.stem}/{modality}" if modality else path.stem
    return made_once(_cached(name, _digest([path])), make, note)


def _trained(path: Path, note: Callable[[str], None]) -> Path:
    """Return the ONNX file of a checkpoint, or of the network or ensemble in a run folder."""
    with _installed(str(path)):
        from .exports import checkpoint_files, exported_checkpoint  # noqa: PLC0415 - needs PyTorch
    name = path.resolve().parent.name if path.name == "model.ckpt" else path.resolve().name.removesuffix(_CHECKPOINT)
    return made_once(_cached(name, _digest(checkpoint_files(path))), lambda: exported_checkpoint(path, note), note)


def _cached(name: str, digest: str) -> Path:
    """Return the path of an export in the cache; it depends on the weights and on the version of equiscreen."""
    plain = re.sub(r"[^\w.+-]", "-", name)[:100]
    return cache_folder() / "models" / f"{plain}.{digest[:12]}.equiscreen-{__version__}.onnx"


def _digest(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of one file, or of the hashes of several files."""
    digests = []
    for path in paths:
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@contextmanager
def _installed(model: str, otherwise: str = "") -> Iterator[None]:
    """Within a block, report a missing package that an export needs.

    Raises:
        ModelFileError: A package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModelFileError(
            f"{model}: the first use of this model exports its weights, which requires PyTorch and onnx ({error.name} "
            f"is not installed): pip install 'equiscreen[rank]'{otherwise}"
        ) from error
