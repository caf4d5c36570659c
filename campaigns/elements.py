"""Energies of the elements computed with a model, once for each model, and kept in the cache.

`elements.extxyz` beside this module holds the most stable PBE phase of each of 89 elements, with its id in the
Materials Project: the elemental references of MatPES (Kaplan et al., arXiv:2503.04070), as distributed with MatCalc
0.7.0 (BSD-3).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .. import __version__
from ..export.runtime.dispersion import Dispersion
from ..export.runtime.onnx_potential import OnnxPotential
from ..pipeline.energy_schemes import NO_DISPERSION
from ..pipeline.errors import StoreError
from ..pipeline.runs.options import RunOptions
from ..screening.candidate_graphs import prepare_graphs
from ..screening.dataset.reader import ScoresReader
from ..screening.relaxation.relax import relax
from .models.cache import cache_folder, exclusive, usable

# Crystals of the elements, as extended XYZ.
ELEMENTS = Path(__file__).with_name("elements.extxyz")


def own_elements(
    model: Path,
    potential: OnnxPotential,
    options: RunOptions,
    note: Callable[[str], None],
    *,
    dispersion: str = NO_DISPERSION,
) -> Path:
    """Return the path of the scores dataset of the crystals in `ELEMENTS`, relaxed with a model.

    Elements that the model does not cover have no energy. The dataset is computed once and kept in the cache folder, at
    `elements_path`.

    Args:
        model: ONNX file that predicts energy, forces and stress.
        potential: The same file, loaded.
        options: Scheduler, device and progress display of the relaxation.
        note: Called with a message if the dataset is damaged, must be computed, or is being computed elsewhere.
        dispersion: Name of the dispersion correction that is added to the model.

    Raises:
        ModelFileError: The model lacks energy, forces or stress.
        ConfigError: The dispersion correction cannot be added to the model.
        EquiscreenError: The cache folder cannot be written, or the relaxation fails.
    """
    out = elements_path(potential, dispersion)
    folder = out.parent
    if _is_intact(out):
        return out
    with exclusive(folder, note):
        if _is_intact(out):
            return out
        if out.exists():
            note(f"{out} is damaged; computing it again")
            shutil.rmtree(folder)
        note(f"relaxing crystals of the elements with the model (needed only once for each model); result: {out}")
        with usable(folder):
            folder.mkdir(exist_ok=True)
        run = replace(options, limit=None, overwrite=True)
        graphs = prepare_graphs(str(ELEMENTS), model, folder / "crystals.zarr", run).path
        relax(
            graphs,
            model,
            out,
            dispersion=dispersion,
            scheduler=run.scheduler,
            device=run.device,
            allow_mixed_devices=run.allow_mixed_devices,
            overwrite=True,
            progress=run.progress,
        )
    return out


def elements_path(potential: OnnxPotential, dispersion: str = NO_DISPERSION) -> Path:
    """Return the path of the dataset of elements in the cache.

    The path depends on the weights, the dispersion correction, and the versions of equiscreen and of the library of the
    correction.

    Raises:
        ConfigError: The dispersion correction cannot be added to the model.
    """
    weights = potential.metadata.weights_sha256[:12]
    added = Dispersion.of(dispersion, {"the model": potential.metadata})
    weights = weights if added is None else f"{weights}+{added.name}-{added.version}"
    name = f"{weights}.equiscreen-{__version__}"
    return cache_folder() / "elements" / name / "elements.zarr"


def _is_intact(path: Path) -> bool:
    """Whether a dataset exists and can be read from end to end."""
    try:
        rows = ScoresReader(path)
        for name in rows.specs:
            rows.column(name, 0, len(rows))
    except StoreError:
        return False
    return True
