from ase.calculators.singlepoint import SinglePointCalculator
from equiscreen.demo.published import CRYSTALS
from equiscreen.model import Config, load_checkpoint, train
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.pretrained.load import import_weights
from equiscreen.pipeline import GraphBlock, GraphStore, LabelMapping, Structure, featurize
from equiscreen.screening.chemistry.elemental_energies import elemental_energies


MODEL, CUTOFF, SEED = "7net-0", 5.0, 0
TRAINING: dict[str, Any] = {"batch_size": 4, "split": {"by": "structure", "validation": 0.1}}
FROZEN = ["sent", "interactions.0", "interactions.1"]
# Name of each run, with its learning rate, whether it replays the old domain, and what is frozen.
RUNS: dict[str, tuple[float, bool, list[str]]] = {
    "learning rate 0.01": (0.01, False, []),
    "learning rate 0.0005": (0.0005, False, []),
    "0.0005, frozen parts": (0.0005, False, FROZEN),
    "0.0005, replay": (0.0005, True, []),
    "0.0005, replay, frozen parts": (0.0005, True, FROZEN),
}


def silicon(data: Path, count: int, folder: Path) -> tuple[Path, Path]:
