"""Errors of predicted dielectric and elastic tensors, and of their parts with l = 0, 2 and 4.

    python tests/benchmarks/tensors.py DATA_FOLDER --work FOLDER [--jobs 2] [--splits 2] [--only elastic] [--quick]

The data are the electronic part of 1,056 dielectric tensors (Petousis et al., Sci. Data 4, 160134 (2017)) and 1,181
elastic tensors (de Jong et al., Sci. Data 2, 150009 (2015)), from matminer 0.3.2, in the frame of their POSCAR. A tenth
of the crystals, by composition, is the test set, which is evaluated once.

The error of a crystal is the Frobenius norm of the difference of the whole tensors; for an elastic tensor, of all 81
C_ijkl. A tensor is a sum of parts that rotations do not mix: 0e + 2e for a dielectric tensor, and two 0e, two 2e and
one 4e for an elastic one. The parts are orthogonal, and their errors are given separately, with the two copies
combined. A cubic crystal has no 2e part, and its dielectric tensor is a multiple of the identity; its elastic 4e part
is what makes Zener's ratio differ from 1. The predictors are:

- mean: the mean of the 0e parts of the training set, for every crystal. The mean of any other part would depend on the
  orientation of the crystals. Outliers dominate the mean of dielectric tensors, so the mean of logarithms is given too.
- invariant: a network with the same harmonics, radial functions and products and about the same number of parameters,
  but with scalar atom features and a head for the 0e parts alone. It sees angles, but has no features with a direction,
  so it cannot predict more. Its labels are the projections of the tensors.
- equivariant: the network with a head for the whole tensor.

Dielectric constants become very large where a band gap nearly closes. None is dropped: both networks learn logarithms
with Huber's loss, and errors are given for all crystals and for those whose mean eigenvalue is at most 30.

The trainings run as in `formation_energy.py`: each writes a run folder and a JSON file to --work; running the same
command again skips finished trainings and resumes interrupted ones. The test sets of several --splits overlap by
chance; the tables combine them. --quick is a smoke test whose results mean nothing. Prints the text of `tensors.txt`
and draws `tensors.png` (with --quick, in --work).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from equiscreen.model import load_checkpoint
from equiscreen.model.config.head import HeadConfig
from equiscreen.model.equivariance.tensors import TensorBasis, tensor_basis
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.pipeline import GraphStore, LabelMapping, ReadOptions, Structure, featurize
from equiscreen.pipeline.structures.symmetry import point_group
from formation_energy import Training, header, train_all
from matplotlib import pyplot as plt
from numpy.typing import NDArray

CUTOFF = 5.0
# Index of each Cartesian pair in Voigt's order.
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
KINDS = ("equivariant", "invariant")
BREAKS_SYMMETRY = 4  # bit of a store's array `status`


@dataclass(frozen=True, slots=True)
class TensorSet:
    """A set of tensors, and the configuration of its networks.

    Attributes:
        name: Name of the label.
        file, column: File and column of the labels.
        shape: Shape of one label.
        unit: Unit of the labels.
        network: Configuration common to both networks.
        hidden: Hidden irreps of the equivariant and of the invariant network.
        head: Head of the whole tensor.
        invariant_head: Head of the 0e part.
        epochs: Number of training epochs.
        bound: Bound on the mean eigenvalue; crystals beyond it are outliers.
    """

    name: str
    file: str
    column: str
    shape: tuple[int, ...]
    unit: str
    network: Mapping[str, Any]
    hidden: tuple[str, str]
    head: Mapping[str, Any]
    invariant_head: Mapping[str, Any]
    epochs: int
    bound: float | None = None

    @property
    def basis(self) -> TensorBasis:
        """Irreps of the whole tensor."""
        return tensor_basis(HeadConfig.model_validate(self.head))

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Degree l of each component, int64[dim]."""
        return np.repeat([ir.l for _, ir in self.basis.irreps], [mul * ir.dim for mul, ir in self.basis.irreps])

    def components(self, tensors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Components float64[n, dim] of tensors float64[n, *shape], in an orthonormal basis: norms are preserved."""
        for axis in reversed([place for place, size in enumerate(self.shape, 1) if size == 6]):
            tensors = np.take(tensors, VOIGT, axis=axis)
        found: NDArray[np.float64] = tensors.reshape(len(tensors), -1) @ self.basis.matrix.numpy()
        return found

    def isotropic(self, invariants: NDArray[np.float64]) -> NDArray[np.float64]:
        """Components float64[n, dim] from the 0e ones, float64[n] or float64[n, n_0e]; all others are zero."""
        found = np.zeros((invariants.size // int((self.degrees == 0).sum()), len(self.degrees)))
        found[:, self.degrees == 0] = invariants.reshape(len(found), -1)
        return found


SETS = (
    TensorSet(
        name="dielectric",
        file="dielectric_constant.csv.gz",
        column="e_electronic",
        shape=(3, 3),
        unit="",
        network={"l_max": 2, "correlation": 3},
        hidden=("32x0e + 16x1o + 8x2e", "36x0e"),
        head={"tensor": "symmetric", "transform": "log"},
        invariant_head={"tensor": "scalar", "transform": "log", "label": "dielectric_0e"},
        epochs=200,
        bound=30.0,
    ),
    TensorSet(
        name="elastic",
        file="elastic_tensor.csv.gz",
        column="elastic_tensor",
        shape=(6, 6),
        unit="GPa",
        network={"l_max": 4, "correlation": 2},
        hidden=("16x0e + 8x1o + 8x2e + 4x3o + 4x4e", "28x0e"),
        head={"tensor": "elastic"},
        invariant_head={"irreps": "2x0e", "label": "elastic_0e"},
        epochs=70,
    ),
)


def make_store(data: Path, work: Path, tensors: TensorSet) -> GraphStore:
    """The graph store of a set, with the tensors and their 0e components as labels."""
    out = work / f"{tensors.name}.zarr"
    if not out.exists():
        # The first line is a comment, and many fields contain #.
        table = pd.read_csv(data / "tensors" / tensors.file, header=1)
        labels = np.array([json.loads(text) for text in table[tensors.column]])
        isotropic = tensors.components(labels)[:, tensors.degrees == 0]
        columns = {"material_id": table.material_id, "poscar": table.poscar, "tensor": table[tensors.column]}
        columns["isotropic"] = [json.dumps(row if len(row) > 1 else row[0]) for row in isotropic.tolist()]
        pd.DataFrame(columns).to_parquet(source := work / f"{tensors.name}.parquet", index=False)
        size = isotropic.shape[1]
        shape, tail = "x".join(map(str, tensors.shape)), f":{size}" if size > 1 else ""
        inline = [f"{tensors.name}:{shape}=tensor", f"{tensors.name}_0e{tail}=isotropic"]
        mapping = LabelMapping().with_inline([f"{label}[{tensors.unit}]" for label in inline])
        options = ReadOptions(structure_field="poscar")
        report = featurize(source, out, cutoff=CUTOFF, labels=mapping, options=options, scheduler="threads")
        print(f"  {report}".replace(f"{work}/", ""), file=sys.stderr, flush=True)
    return GraphStore(out)


def make_trainings(arguments: argparse.Namespace, tensors: TensorSet, store: Path) -> Iterator[Training]:
    """Trainings of the equivariant and the invariant network on each split."""
    for seed in range(arguments.splits):
        heads = (tensors.head, tensors.invariant_head)
        for kind, hidden, head in zip(KINDS, tensors.hidden, heads, strict=True):
            network = {**tensors.network, "cutoff": CUTOFF, "energy": False, "hidden_irreps": hidden}
            network["heads"] = {tensors.name: dict(head)}
            training: dict[str, Any] = {"max_epochs": 1 if arguments.quick else tensors.epochs, "batch_size": 16}
            training |= {"learning_rate": 5e-3, "weight_decay": 1e-4, "threads": 1, "accelerator": "cpu"}
            training["loss"] = {"heads": {tensors.name: {"kind": "huber", "delta": 0.5}}}
            training["split"] = {"by": "composition", "validation": 0.1, "test": 0.1, "seed": seed}
            config = {"network": network, "training": training}
            yield Training(f"{tensors.name}-{kind}-{seed}", store, config)


def is_cubic(structure: Structure) -> bool:
    """Whether the point group leaves one invariant of a symmetric 3x3 tensor, the trace."""
    rotations = point_group(structure)
    traces = np.trace(rotations, axis1=1, axis2=2)
    characters = (traces**2 + np.trace(rotations @ rotations, axis1=1, axis2=2)) / 2
    return round(float(characters.mean())) == 1


@dataclass(frozen=True, slots=True)
class Tested:
    """Predictions for the test structures of all splits.

    Attributes:
        label: Components of the labels, float64[n, dim].
        found: Components of the predictions, float64[n, dim], by predictor.
        cubic: Whether each crystal is cubic, bool[n].
    """

    label: NDArray[np.float64]
    found: dict[str, NDArray[np.float64]]
    cubic: NDArray[np.bool_]

    @property
    def mean_eigenvalue(self) -> NDArray[np.float64]:
        """Mean eigenvalue of 3x3 labels, float64[n]; the first component is the trace divided by the root of 3."""
        return self.label[:, 0] / np.sqrt(3)


def evaluate(tensors: TensorSet, store: GraphStore, work: Path, splits: int) -> Tested:
    """Evaluate all predictors on the test structures of each split."""
    block = store.block(0, len(store))
    labels = tensors.components(block.structure_labels[tensors.name])
    rows: list[NDArray[np.int64]] = []
    found: dict[str, list[NDArray[np.float64]]] = {}
    for seed in range(splits):
        training, test = split_rows(tensors, work, seed)
        rows.append(test)
        for name, mean in means(tensors, labels[training]).items():
            found.setdefault(name, []).append(np.tile(mean, (len(test), 1)))
        for kind in KINDS:
            network, _ = load_checkpoint(work / f"{tensors.name}-{kind}-{seed}/model.ckpt")
            predicted = TorchPotential(network).evaluate(block.take(test)).properties[tensors.name]
            whole = tensors.components if kind == "equivariant" else tensors.isotropic
            found.setdefault(kind, []).append(whole(predicted))
    tested = np.concatenate(rows)
    cubic = np.array([is_cubic(block.structure(row)) for row in tested.tolist()])
    return Tested(labels[tested], {name: np.concatenate(parts) for name, parts in found.items()}, cubic)


def split_rows(tensors: TensorSet, work: Path, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and test rows of a split, which are the same for both networks.

    Raises:
        SystemExit: The networks have different rows.
    """
    found = []
    for kind in KINDS:
        with np.load(work / f"{tensors.name}-{kind}-{seed}/split.npz") as parts:
            found.append((parts["training_0"], parts["test_0"]))
    if any(not np.array_equal(a, b) for a, b in zip(*found, strict=True)):
        raise SystemExit(f"{tensors.name}: the networks of split {seed} were trained or tested on different structures")
    return found[0]


def means(tensors: TensorSet, labels: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Constant isotropic predictions, float64[dim], by name."""
    known = labels[:, tensors.degrees == 0]
    found = {"mean": known.mean(axis=0)}
    if tensors.head.get("transform") == "log":
        found["mean of logarithms"] = np.exp(np.log(known).mean(axis=0))
    return {name: tensors.isotropic(mean)[0] for name, mean in found.items()}


def print_errors(tensors: TensorSet, tested: Tested) -> None:
    """Print a table of errors for all crystals and for subsets of them."""
    groups = {"all": np.ones(len(tested.label), dtype=bool), "cubic": tested.cubic, "not cubic": ~tested.cubic}
    if tensors.bound is not None:
        fine = tested.mean_eigenvalue <= tensors.bound
        groups |= {f"mean eigenvalue <= {tensors.bound:g}": fine, f"mean eigenvalue > {tensors.bound:g}": ~fine}
    degrees = sorted(set(tensors.degrees.tolist()))
    unit = f", {tensors.unit}" if tensors.unit else ""
    print(
        f"error of the whole tensor (Frobenius norm{unit}), the same relative to the label's norm, mean error by part"
    )
    names = "".join(f"{f'{degree}e':>9}" for degree in degrees)
    print(f"  {'':<22}{'mean':>9}{'median':>9}{'mean rel.':>11}{'median rel.':>13}{names}")
    for group, chosen in groups.items():
        print(f"  {group}: {chosen.sum()} test structures")
        for name, found in tested.found.items() if chosen.any() else ():
            error = (found - tested.label)[chosen]
            norm = np.linalg.norm(error, axis=1)
            relative = norm / np.linalg.norm(tested.label[chosen], axis=1)
            parts = [np.linalg.norm(error[:, tensors.degrees == degree], axis=1).mean() for degree in degrees]
            print(
                f"    {name:<20}{norm.mean():>9.3g}{np.median(norm):>9.3g}{relative.mean():>11.3f}"
                f"{np.median(relative):>13.3f}{''.join(f'{part:>9.3g}' for part in parts)}"
            )


def draw(path: Path, results: Mapping[str, tuple[TensorSet, Tested]]) -> None:
    """Draw the norms of the parts of predictions against those of the labels, a panel for each part."""
    panels = [
        (tensors, tested, degree)
        for tensors, tested in results.values()
        for degree in sorted(set(tensors.degrees.tolist()))
    ]
    mpl.use("Agg")
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.1), layout="constrained", squeeze=False)
    for panel, (tensors, tested, degree) in zip(axes[0], panels, strict=True):
        part = tensors.degrees == degree
        label, found = (np.linalg.norm(x[:, part], axis=1) for x in (tested.label, tested.found["equivariant"]))
        for name, chosen in (("not cubic", ~tested.cubic), ("cubic", tested.cubic)):
            panel.plot(label[chosen], found[chosen], ".", ms=4, alpha=0.7, label=name)
        end = max(label.max(), found.max())
        panel.plot([0, end], [0, end], color="black", lw=0.8)
        unit = f" ({tensors.unit})" if tensors.unit else ""
        panel.set(title=f"{tensors.name}, {degree}e", xlabel=f"norm of the label{unit}", ylabel="of the prediction")
        if tensors.bound is not None and degree == 0:
            panel.set(xscale="log", yscale="log")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def print_set(tensors: TensorSet, store: GraphStore, records: Mapping[str, dict[str, Any]], tested: Tested) -> None:
    """Print the crystals, the trainings and the errors of one set."""
    labels = store.column(tensors.name)
    size = np.linalg.norm(labels, axis=(1, 2))
    # The antisymmetric part of a label, which is noise of its computation, is in no part.
    lost = np.linalg.norm(labels - labels.swapaxes(1, 2), axis=(1, 2)) / 2 / size
    counts = ", ".join(f"{count:,} {name}" for name, count in store.attrs["counts"].items())
    print(f"\n{tensors.name} ({tensors.file}): {counts}; at most {lost.max():.1e} of a label is not symmetric")
    n_broken = int(np.count_nonzero(store.column("status") & BREAKS_SYMMETRY))
    print(f"{n_broken} labels break the symmetry of their crystal by more than 5 % of their norm; they are kept")
    if tensors.bound is not None:
        beyond = int((np.trace(labels, axis1=1, axis2=2) / 3 > tensors.bound).sum())
        n_test = int((tested.mean_eigenvalue > tensors.bound).sum())
        print(f"mean eigenvalue above {tensors.bound:g}: {beyond} of {len(store):,} crystals, {n_test} in the test set")
    for name, record in records.items():
        print(f"  {name}: {record['epochs']} epochs, {record['seconds']:.0f} s, {record['parameters']:,} parameters")
    for kind in KINDS:
        network = records[f"{tensors.name}-{kind}-0"]["config"]["network"]
        print(f"  {kind}: {json.dumps(network)}")
    print(f"  training: {json.dumps(records[f'{tensors.name}-{KINDS[0]}-0']['config']['training'])}")
    print_errors(tensors, tested)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--splits", type=int, default=2, help="number of test sets; the tables combine them")
    parser.add_argument("--only", choices=[tensors.name for tensors in SETS])
    parser.add_argument("--quick", action="store_true", help="a smoke test with one epoch")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    chosen = [tensors for tensors in SETS if arguments.only in (None, tensors.name)]
    stores = {tensors.name: make_store(arguments.data, arguments.work, tensors) for tensors in chosen}
    trainings = {
        tensors.name: list(make_trainings(arguments, tensors, Path(stores[tensors.name].path))) for tensors in chosen
    }
    # Elastic trainings take longest and go first.
    queue = [training for name in reversed(trainings) for training in trainings[name]]
    done = dict(zip((x.name for x in queue), train_all(queue, arguments.work, arguments.jobs), strict=True))
    print(header())
    results = {}
    for tensors in chosen:
        store = stores[tensors.name]
        tested = evaluate(tensors, store, arguments.work, arguments.splits)
        records = {training.name: done[training.name] for training in trainings[tensors.name]}
        print_set(tensors, store, records, tested)
        results[tensors.name] = (tensors, tested)
    draw((arguments.work if arguments.quick else Path(__file__).parent) / "tensors.png", results)


if __name__ == "__main__":
    main()
