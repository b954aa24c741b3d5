"""The MLflow flavor of a decoder: a folder of safetensors and JSON, which plain MLflow loads and serves by pyfunc.

Written: MLmodel (with the signature z -> x and an example), data/decoder/weights.safetensors, data/decoder/hparams.json.
Loading never unpickles: the architecture comes from the model that hparams.json names, the numbers from safetensors.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossy_mlflow.errors import ConflictError, LossyError, UsageError
from lossy_mlflow.hparams import Hparam, flatten, unflatten

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1
# Where MLflow puts the folder that it is given as `data_path`.
_DATA = Path("data", "decoder")
_WEIGHTS, _HPARAMS = "weights.safetensors", "hparams.json"
# What `save_model` writes, MLflow's own files among it, by their paths below the folder.
FILES = frozenset(
    {
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "input_example.json",
        "serving_input_example.json",
        (_DATA / _WEIGHTS).as_posix(),
        (_DATA / _HPARAMS).as_posix(),
    }
)


def save_model(
    folder: Path,
    weights: Path,
    tree: Hparam,
    *,
    run_id: str | None = None,
    model_id: str | None = None,
    created: datetime.datetime | None = None,
) -> None:
    """Write the decoder with the `weights` (a safetensors file), whose architecture `tree` says, as an MLflow model.

    Neither torch nor the model's code is needed for it.
    """
    import mlflow.pyfunc
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    sizes = {
        "model_train.z_size": tree.model_train.z_size,
        "dataset.input_vector_length": tree.dataset.input_vector_length,
    }
    for field, size in sizes.items():
        if not isinstance(size, int):
            raise UsageError(
                f"The hparam {field} must be a whole number, it is {size!r}.", "Set it in the hparam_set."
            )
    z_size, x_size = sizes.values()
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, z_size))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, x_size))]),
    )
    # Nothing drawn or read from a clock here: two processes that write the same model write the same files.
    model = Model(
        run_id=run_id,
        model_id=model_id,
        model_uuid=model_id,
        utc_time_created=f"{created:%Y-%m-%d %H:%M:%S.%f}" if created else None,
    )
    model.add_flavor("lossy_mlflow", format=FORMAT, data=str(_DATA), model_name=tree.model_name)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, _DATA.name)
        data.mkdir()
        shutil.copyfile(weights, data / _WEIGHTS)
        (data / _HPARAMS).write_text(json.dumps(flatten(tree), indent=1))
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=__name__,
            data_path=str(data),
            mlflow_model=model,
            signature=signature,
            input_example=np.zeros((1, z_size), np.float32),
            pip_requirements=[
                f"{name}=={version(name)}" for name in ("lossy-mlflow", "torch", "safetensors")
            ],
        )


def load_model(folder: Path, device: str = "cpu") -> tuple[nn.Module, Hparam]:
    """The decoder in `folder` (an MLflow model that `save_model` wrote), in evaluation mode, and its Hparam tree."""
    from mlflow.models import Model

    flavors = Model.load(str(folder)).flavors
    if "lossy_mlflow" not in flavors:
        raise LossyError(
            f"{folder} is not a decoder of lossy_mlflow: its MLmodel has {sorted(flavors) or 'no flavors'}."
        )
    if flavors["lossy_mlflow"]["format"] > FORMAT:
        raise LossyError(
            f"This decoder has format {flavors['lossy_mlflow']['format']}, this lossy_mlflow reads up to {FORMAT}.",
            "Upgrade: pip install -U lossy-mlflow",
        )
    return _load_data(folder / _DATA, device)


def _load_data(data: Path, device: str) -> tuple[nn.Module, Hparam]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tree = unflatten(json.loads((data / _HPARAMS).read_text()))
    # Whatever device the weights were trained on, they were stored from the CPU and are read to `device`.
    try:
        weights = load_file(data / _WEIGHTS, device=device)
    except SafetensorError as error:
        raise LossyError(f"The weights in {data / _WEIGHTS} can't be read: {error}") from error
    decoder = _new_decoder(tree).to(device)
    if off := differences(decoder, weights, "stored"):
        raise ConflictError(
            f"The stored weights don't fit the model {tree.model_name!r}: {off}",
            "Was the model changed since? Load it with the code that trained it (the run's git_commit, its user_code).",
        )
    decoder.load_state_dict(weights)
    return decoder.eval(), tree


def refuse_unloadable(weights: Mapping[str, Tensor], tree: Hparam) -> None:
    """Raises UsageError where a decoder with these weights, once stored, could not be loaded again: a buffer has grown, say."""
    if off := differences(_new_decoder(tree), weights, "trained"):
        raise UsageError(
            f"The decoder of {tree.model_name!r} could be stored and never loaded again: {off}",
            "Give its tensors their final shapes when it is built; "
            "a buffer that need not be stored: register_buffer(..., persistent=False)",
        )


def _new_decoder(tree: Hparam) -> nn.Module:
    from lossy_mlflow.models import build_model, decoder_of
    from lossy_mlflow.training import seeded

    # Seeded as it was for training: what is drawn when it is built and never stored is the same again. And whoever trains, or
    # loads, finds torch's generator as it was.
    with seeded(tree.random_seed or 0):
        return decoder_of(build_model(tree))


def differences(
    module: nn.Module, weights: Mapping[str, Tensor], what: str, the_modules: str = "built anew"
) -> str:
    """The first names and shapes in which `weights`, which are `what`, and those of `module` differ; '' where none do."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    off = [
        f"{name}: {what} {given.get(name, 'nothing')}, {the_modules} {wanted.get(name, 'nothing')}"
        for name in sorted(wanted.keys() | given.keys())
        if wanted.get(name) != given.get(name)
    ]
    return "; ".join(off[:3]) + (" ..." if off[3:] else "")


class _Pyfunc:
    """What MLflow calls: z in, the decoder's mean images out."""

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = decoder

    def predict(self, model_input: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """x_mean (n, input_vector_length) for z (n, z_size)."""
        import torch

        from lossy_mlflow.models import decode

        z = torch.as_tensor(np.array(model_input, np.float32))
        with torch.no_grad():
            x_mean, _ = decode(self._decoder, z)
        return x_mean.numpy()


def _load_pyfunc(path: str) -> _Pyfunc:
    """The hook that MLflow's pyfunc calls with the folder of the data."""
    from lossy_mlflow.user_code import load_user_code

    load_user_code(None)
    return _Pyfunc(_load_data(Path(path), "cpu")[0])


def files_sha256(folder: Path) -> str:
    """One digest over the names and contents of all files below `folder`, as `save_model` wrote them."""
    lines = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        # MLflow adds this file to what it downloads.
        if file.name != "registered_model_meta":
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f"{digest}  {file.relative_to(folder).as_posix()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_sha256(folder: Path) -> str:
    """The digest of the weights file of the model in `folder`."""
    return hashlib.sha256((folder / _DATA / _WEIGHTS).read_bytes()).hexdigest()
