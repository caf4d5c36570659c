"""Evaluation of an exported model with ONNX Runtime; needs neither PyTorch nor e3nn."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ModelFileError, TableSizeError, detail
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.neighbor_table import INPUT_NAMES
from ...pipeline.graphs.potential import Evaluation, OutputSpec, evaluate_in_buckets
from ...pipeline.runs.options import DEFAULT_SLOTS
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.structures.elements import pair_numbers
from ...pipeline.structures.structure import Structure
from .file_validation import check_model_bytes
from .metadata import ModelMetadata
from .placement import CUDA_PROVIDER, Placement, check_placement, finished_placement
from .probe_batch import ProbeBatch
from .providers import CPU, allows_cpu_nodes, check_providers, gpu_memory, gpu_model, instruction_set, providers

# Some kernels count the elements of a tensor with 32 bits.
MOST_ELEMENTS = 2**31 - 1
# Part of the memory of a GPU that the batches in flight may need by the measured bytes per slot; the weights, the code
# of kernels and gaps between tensors need memory, too.
_GPU_SHARE = 0.5
_IN_FLIGHT_ON_GPU = 2
# Entries of a model's origin that identify the teacher of a distilled network; see `LabellingModel.of_student`.
TEACHER = ("distilled_from", "teacher_sha256", "energy_basis")


class OnnxPotential:
    """An exported model, loaded for evaluation.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.export import OnnxPotential
        >>> from equiscreen.pipeline import Structure
        >>> potential = OnnxPotential.load("model.onnx")
        >>> potential.evaluate_structures([Structure.from_ase(bulk("Cu"))]).forces.shape
        (1, 3)

    Args:
        data: Content of the ONNX file.
        name: Name of the file, for messages.
        threads: Number of threads used by ONNX Runtime (it ignores OMP_NUM_THREADS).
        slots: Number of neighbour slots per batch; None chooses it: `DEFAULT_SLOTS` on the CPU, as many as fit into the
            memory on a GPU.
        device: Device on which the model runs; see `export.runtime.providers.providers`.

    Raises:
        ModelFileError: The file is damaged or not a model exported by equiscreen, or ONNX Runtime is not installed or
            cannot load the file.
        DeviceError: This machine does not have the device; or, on a GPU, parts of the model run on the CPU, or the
            results differ from the CPU results that are stored in the file.

    Attributes:
        placement: Where the nodes run on a GPU; None on the CPU.
        gpu_differences: Largest differences of a GPU from the CPU by output, measured on the batch in the file.
        computes_on: Kind of device and instruction set, on which the last bits of results depend, such as
            "cpu, x86_64 AVX2".
    """

    def __init__(
        self,
        data: bytes,
        name: str = "model",
        *,
        threads: int = 1,
        slots: int | None = None,
        device: str = CPU,
    ) -> None:
        try:
            import onnxruntime  # noqa: PLC0415 - an extra; stores and scores can be read without it
        except ModuleNotFoundError as error:
            raise ModelFileError("ONNX Runtime is not installed: pip install 'equiscreen[cpu]'") from error
        check_model_bytes(data, name)
        chosen = providers(device)
        self.placement: Placement | None = None
        self.gpu_differences: dict[str, float] = {}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Memory patterns help for inputs of equal shapes. Batches of crystals rarely have equal shapes, and each
        # pattern takes as much memory again.
        options.enable_mem_pattern = False
        # Idle threads that spin take CPU time away from the other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with tempfile.TemporaryDirectory(prefix="equiscreen-") as folder:
            if on_gpu := len(chosen) > 1:
                # The profile of the first batch tells where each node runs.
                options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
            try:
                # Load from bytes: given a path, ONNX Runtime would follow references to other files.
                self._session = onnxruntime.InferenceSession(data, options, providers=chosen)
            except Exception as error:  # ONNX Runtime's exceptions have no common base class
                raise ModelFileError(
                    f"{name}: ONNX Runtime cannot load this file ({detail(error)}); upgrade ONNX Runtime, or export "
                    "the model again with a lower `--opset`"
                ) from error
            check_providers(self._session.get_providers(), chosen, device)
            self._read(data, name)
            self.slots = min(slots or self._automatic_slots(device), self.most_slots)
            if on_gpu:
                self._check_device(name, device)
        model = "cpu" if self.placement is None else f"cuda {gpu_model(device)}"
        self.computes_on = f"{model}, {instruction_set()}"

    def _read(self, data: bytes, name: str) -> None:
        """Read the metadata, and check the inputs and outputs of the graph."""
        self.metadata = ModelMetadata.from_props(self._session.get_modelmeta().custom_metadata_map, name)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._inputs = [item.name for item in self._session.get_inputs()]
        unknown = set(self._inputs) - set(INPUT_NAMES)
        made = {item.name for item in self._session.get_outputs()}
        if absent := {spec.name for spec in self.outputs} - made:
            raise ModelFileError(
                f"{name}: the ONNX graph lacks the outputs {', '.join(sorted(absent))}; export the model again"
            )
        if unknown:
            raise ModelFileError(
                f"{name}: the ONNX graph has unknown inputs: {', '.join(sorted(unknown))}; export the model again with "
                "this version"
            )

    def _automatic_slots(self, device: str) -> int:
        """Return the slots per batch on a device; on a GPU, a power of two, so that GPUs of one kind have the same."""
        bytes_per_slot = self.metadata.bytes_per_slot
        on_gpu = CUDA_PROVIDER in self._session.get_providers()
        total = gpu_memory(device) if on_gpu and bytes_per_slot else 0
        if not total:
            return DEFAULT_SLOTS
        fitting = int(_GPU_SHARE * total / _IN_FLIGHT_ON_GPU / bytes_per_slot)
        return max(DEFAULT_SLOTS, 1 << (fitting.bit_length() - 1) if fitting else 0)

    def _check_device(self, name: str, device: str) -> None:
        """Check that the model runs on the GPU and gives the results that it has on the CPU; ends the profiling.

        Raises:
            DeviceError: Parts of the model run on the CPU, or results differ by more than rounding.
            ModelFileError: The batch in the file cannot be read.
        """
        stored = self.metadata.probe_batch
        batch = None if stored is None else ProbeBatch.from_json(stored, name)
        atom = Structure.from_cartesian(self.elements[:1], [[0.0, 0.0, 0.0]])
        self.evaluate_structures([atom] if batch is None else batch.structures)
        placement = finished_placement(self._session)
        if CUDA_PROVIDER not in self._session.get_providers():
            return  # `auto` has warned and uses the CPU
        self.placement = placement
        if not allows_cpu_nodes(device):
            check_placement(placement, name, device)
        if batch is None:
            warnings.warn(
                f"{name} has no probe batch, so its results on {device} are not compared with the CPU; export it again",
                RuntimeWarning,
                stacklevel=4,
            )
        else:
            self.gpu_differences = batch.check(self, name, device)

    @classmethod
    def load(
        cls, path: str | Path, *, threads: int | None = None, slots: int | None = None, device: str = CPU
    ) -> OnnxPotential:
        """Load a model file.

        Args:
            path: Path of the ONNX file.
            threads: Number of threads used by ONNX Runtime; None uses all cores.
            slots: Number of neighbour slots per batch; None chooses it, as in the class.
            device: Device on which the model runs; see `export.runtime.providers.providers`.

        Raises:
            ModelFileError: The file is missing or damaged, or was not exported by equiscreen; or ONNX Runtime is not
                installed or cannot load the file.
            DeviceError: As for `OnnxPotential`.
        """
        return cls(read_model(path), str(path), threads=threads or os.cpu_count() or 1, slots=slots, device=device)

    @property
    def cutoff(self) -> float:
        """Cutoff radius, angstrom."""
        return self.metadata.cutoff

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the model covers."""
        return self.metadata.elements

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """Outputs of the model."""
        return self.metadata.outputs

    @property
    def minimum_distances(self) -> dict[tuple[int, int], float] | None:
        """Smallest distance between atoms of each pair of elements in the training data, angstrom.

        Keys are pairs of atomic numbers, the smaller number first. A pair that is never within the cutoff is absent.
        None if the training data are unknown, as for imported weights.
        """
        distances = self.metadata.minimum_distances
        return None if distances is None else {pair_numbers(pair): value for pair, value in distances.items()}

    @property
    def in_flight(self) -> int:
        """Number of batches that `evaluate_batches` evaluates at a time: two on a GPU, one on the CPU."""
        return 1 if self.placement is None else _IN_FLIGHT_ON_GPU

    @property
    def most_slots(self) -> int:
        """Largest number of neighbour slots of a table, so that no tensor has more than `MOST_ELEMENTS` elements."""
        elements = self.metadata.elements_per_slot
        return int(MOST_ELEMENTS / elements) if elements else MOST_ELEMENTS

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Evaluate all outputs for all structures of a block.

        Args:
            block: Graphs with at least the model's cutoff, of elements that the model covers.

        Raises:
            UnknownElementError: The model does not cover an element.
            TableSizeError: A structure needs a tensor of more than `MOST_ELEMENTS` elements.
        """
        dtype = np.dtype(self.metadata.dtype)
        return evaluate_in_buckets(block, self, dtype, self.slots, self.run_table)

    def evaluate_structures(self, structures: Sequence[Structure]) -> Evaluation:
        """Evaluate all outputs for structures, after building their graphs.

        Raises:
            InvalidStructureError: A structure cannot become a graph, for example because two atoms are at one position.
            UnknownElementError: The model does not cover an element.
        """
        return self.evaluate(GraphBlock.from_structures(structures, self.cutoff))

    def run_table(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Evaluate all outputs for one padded neighbour table.

        Args:
            arrays: Arrays of the table, by name; see `NeighborTable.arrays`.

        Returns:
            Arrays of the outputs, by name.

        Raises:
            TableSizeError: A tensor would have more than `MOST_ELEMENTS` elements.
        """
        size = arrays["neighbors"].size
        if size > self.most_slots:
            raise TableSizeError(
                f"a neighbour table of {size:,} slots would need a tensor of more than 2^31 elements (this model can "
                f"evaluate {self.most_slots:,} slots); use a smaller cell"
            )
        names = [spec.name for spec in self.outputs]
        feed = {name: arrays[name] for name in self._inputs}
        return dict(zip(names, self._session.run(names, feed), strict=True))


def read_model(path: str | Path) -> bytes:
    """Read the bytes of a model file.

    Raises:
        ModelFileError: The file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot read the model file ({error.strerror}); check the path and its permissions"
        ) from error


def check_cutoff(graphs: GraphStore, potential: OnnxPotential, model: str | Path) -> None:
    """Reject a model whose cutoff is larger than the cutoff of a graph store.

    Raises:
        ModelFileError: The cutoff of the model is larger.
    """
    if graphs.cutoff < potential.cutoff:
        raise ModelFileError(
            f"{graphs.path}: the cutoff of this store is {graphs.cutoff} angstrom, but the model needs "
            f"{potential.cutoff}; run `equiscreen featurize SOURCE... --out NEW.zarr --model {model}`"
        )


def check_gradients(potential: OnnxPotential, model: str | Path, needed_by: str) -> None:
    """Reject a model that does not predict energies, forces and stresses.

    Args:
        potential: The model.
        model: Path of its file, for the message.
        needed_by: Beginning of the message, such as "a relaxation needs".

    Raises:
        ModelFileError: An output is missing.
    """
    absent = {"energy", "forces", "stress"} - {spec.name for spec in potential.outputs}
    if absent:
        raise ModelFileError(
            f"{model}: {needed_by} {', '.join(sorted(absent))}, which this model does not predict; export it with "
            "--outputs energy,forces,stress"
        )


def model_provenance(model: str | Path, potential: OnnxPotential) -> dict[str, Any]:
    """Describe the model that results come from, for the attributes of a dataset: by name and hash, not by folder."""
    distilled = {name: potential.metadata.origin[name] for name in TEACHER if name in potential.metadata.origin}
    return {
        "path": Path(model).name,
        "sha256": potential.sha256,
        "weights_sha256": potential.metadata.weights_sha256,
        "energy_scheme": potential.metadata.energy_scheme,
        "symmetry": potential.metadata.symmetry,
        "members": potential.metadata.members,
        "cutoff": potential.cutoff,
        **distilled,
    }
