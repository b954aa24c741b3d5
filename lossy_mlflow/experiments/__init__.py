"""The verbs, one file each. A verb takes plain values and returns a frozen dataclass; it loads torch when it needs it."""

from lossy_mlflow.experiments.compare import Comparison, compare
from lossy_mlflow.experiments.evaluate import EvaluateResult, evaluate
from lossy_mlflow.experiments.imports import ImportedFile, ImportResult, import_archive, import_files
from lossy_mlflow.experiments.plot import PlotResult, plot
from lossy_mlflow.experiments.request import EpochDone
from lossy_mlflow.experiments.train import TrainResult, train

__all__ = [
    "Comparison",
    "EpochDone",
    "EvaluateResult",
    "ImportResult",
    "ImportedFile",
    "PlotResult",
    "TrainResult",
    "compare",
    "evaluate",
    "import_archive",
    "import_files",
    "plot",
    "train",
]
