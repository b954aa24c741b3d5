"""The MLflow flavor of a decoder: a folder of safetensors and JSON, which plain MLflow loads and serves by pyfunc.

Written: MLmodel (with the signature z -> x, an example, and the digests of the next two), data/decoder/weights.safetensors,
data/decoder/hparams.json; and for people to look at, where the decoder makes pictures, samples.png. Loading never unpickles: the
architecture comes from the model that hparams.json names, the numbers from safetensors. A map of features is written alike, with
the signature x -> features.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from lossy_mlflow.errors import LossyError, NotFoundError, UsageError
from lossy_mlflow.hparams import Hparam, flatten, unflatten

if TYPE_CHECKING:
    from mlflow.models.signature import ModelSignature
    from torch import Tensor, nn

FORMAT = 1
_FLAVOR = "lossy_mlflow"
# Where MLflow puts the folder that it is given as `data_path`.
_DATA = Path("data", "decoder")
_WEIGHTS, _HPARAMS = "weights.safetensors", "hparams.json"
WEIGHTS_FILE = (_DATA / _WEIGHTS).as_posix()
# What `save_model` always writes, MLflow's own files among it, by their paths below the folder.
FILES = frozenset(
    {
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "input_example.json",
        "serving_input_example.json",
        WEIGHTS_FILE,
        (_DATA / _HPARAMS).as_posix(),
    }
)
# What it writes of a decoder that makes pictures.
SAMPLES = "samples.png"

# A LoggedModel of ours, by its type and its name: anybody may call a model's type "decoder".
MODEL_TYPE = "decoder"
_MODEL_NAME = "decoder-epoch-{}"

# MLflow adds it to what it downloads itself.
MLFLOWS_OWN = "registered_model_meta"
_READERS_FAULTS = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    UsageError,
)
REPLACE = "Fetch it anew: lossy download NAME/VERSION    or put it back from a backup."


def logged_model_name(epoch: int) -> str:
    """The name of the LoggedModel that holds the decoder of that epoch."""
    return _MODEL_NAME.format(epoch)


def is_logged_decoder(model_type: str | None, name: str | None) -> bool:
    """Whether a LoggedModel of that type and name is one that holds a decoder of ours."""
    return model_type == MODEL_TYPE and re.fullmatch(_MODEL_NAME.format(r"\d+"), name or "") is not None


def save_model(
    folder: Path,
    weights: Path,
    tree: Hparam,
    *,
    samples: bytes = b"",
    run_id: str | None = None,
    model_id: str | None = None,
    created: datetime.datetime | None = None,
) -> str:
    """Write the decoder with the `weights` (a safetensors file), whose architecture `tree` says, as an MLflow model.

    `samples`: a PNG picture of what it decodes, empty where there is none. Neither torch nor the model's code is needed for it.
    Returns the digest of the weights, as `weights_sha256` does.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    n_in, n_out = _widths(tree)
    # Nothing drawn or read from a clock here: two processes that write the same model write the same files.
    model = Model(
        run_id=run_id,
        model_id=model_id,
        model_uuid=model_id,
        utc_time_created=f"{created:%Y-%m-%d %H:%M:%S.%f}" if created else None,
    )
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, _DATA.name)
        data.mkdir()
        # MLflow makes a copy of what it leads to.
        (data / _WEIGHTS).symlink_to(weights.absolute())
        (data / _HPARAMS).write_text(json.dumps(flatten(tree), indent=1))
        digests = {name: _sha256(data / name) for name in (_WEIGHTS, _HPARAMS)}
        model.add_flavor(
            _FLAVOR,
            format=FORMAT,
            data=str(_DATA),
            model_name=tree.model_name,
            written_by=f"lossy-mlflow {version('lossy-mlflow')}",
            sha256=digests,
        )
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=__name__,
            data_path=str(data),
            mlflow_model=model,
            signature=_signature(n_in, n_out),
            input_example=np.zeros((1, n_in), np.float32),
            pip_requirements=[
                f"{name}=={version(name)}" for name in ("lossy-mlflow", "torch", "safetensors")
            ],
        )
    if samples:
        (folder / SAMPLES).write_bytes(samples)
    return digests[_WEIGHTS]


def _widths(tree: Hparam) -> tuple[int, int]:
    """How many numbers go in and come out: of z and an image; or, of a model without z, of an image and its features, -1 for any.

    Raises UsageError where the tree doesn't say them.
    """
    sizes = {"dataset.input_vector_length": tree.dataset.input_vector_length}
    if tree.model_train.z_size is not None:
        sizes["model_train.z_size"] = tree.model_train.z_size
    for field, size in sizes.items():
        if not isinstance(size, int):
            raise UsageError(
                f"The hparam {field} must be a whole number, it is {size!r}.", "Set it in the hparam_set."
            )
    x_size, *z_size = sizes.values()
    return (*z_size, x_size) if z_size else (x_size, -1)


def _signature(n_in: int, n_out: int) -> ModelSignature:
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, n_in))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, n_out))]),
    )


def load_model(folder: Path, device: str = "cpu", whole: bool = False) -> tuple[nn.Module, Hparam]:
    """The decoder in `folder` (an MLflow model that `save_model` wrote), in evaluation mode, and its Hparam tree.

    `whole`: the files have been verified; else they are held against the digests in MLmodel. Raises LossyError where they are
    damaged or a newer lossy_mlflow wrote them; UnregisteredModelError where the model's code isn't here; ConflictError where
    it is and the weights don't fit it.
    """
    from lossy_mlflow.checkpoints.rebuild import rebuilt

    about = _description(folder)
    data = folder / _DATA
    if not whole:
        _refuse_altered(data, about.sha256)
    tree = _stored_tree(data)
    return rebuilt(data / _WEIGHTS, tree, device, about), tree


def weights_and_tree(folder: Path) -> tuple[Path, Hparam]:
    """Of the decoder in `folder`: its safetensors file, and its Hparam tree. Needs no torch.

    Raises LossyError where what says so is damaged, or a newer lossy_mlflow wrote it.
    """
    _description(folder)
    return folder / _DATA / _WEIGHTS, _stored_tree(folder / _DATA)


def _stored_tree(data: Path) -> Hparam:
    with _damage_told(data / _HPARAMS):
        return unflatten(json.loads((data / _HPARAMS).read_text()))


@dataclass(frozen=True, slots=True)
class Description:
    """What the MLmodel file says: by whom, when and in which run it was written ('' if unknown); digests by file name."""

    written: str
    run_id: str
    sha256: Mapping[str, str]


def _description(folder: Path) -> Description:
    """Read by itself: MLflow's own reader takes ten times as long, and raises whatever it trips over."""
    import yaml

    file = folder / "MLmodel"
    with _damage_told(file):
        content = yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader)
        flavors = content["flavors"]
        if _FLAVOR not in flavors:
            raise LossyError(
                f"{folder} is not a decoder of lossy_mlflow: its MLmodel has {sorted(flavors) or 'no flavors'}.",
                "Load it with MLflow's own API: mlflow.pyfunc.load_model(...)",
            )
        ours = flavors[_FLAVOR]
        number, run_id = int(ours["format"]), str(content.get("run_id") or "")
        digests = {str(name): str(digest) for name, digest in (ours.get("sha256") or {}).items()}
        by, when = ours.get("written_by"), str(content.get("utc_time_created") or "")[:16]
    written = f"by {by or 'an unknown version'}" + (f" on {when} UTC" if when else "")
    written += f" in the run {run_id}" if run_id else ""
    if not 1 <= number <= FORMAT:
        raise LossyError(
            f"The decoder in {folder} has format {number}, this lossy-mlflow {version('lossy-mlflow')} reads up to {FORMAT}; "
            f"it was written {written}.",
            "Upgrade: pip install -U lossy-mlflow",
        )
    return Description(written, run_id, digests)


@contextmanager
def _damage_told(file: Path) -> Iterator[None]:
    """What a file that somebody has altered makes its reader raise, as a LossyError."""
    import yaml

    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"There is no {file}.", REPLACE) from None
    except OSError as error:
        raise LossyError(f"{file} can't be read: {error.strerror}.", REPLACE) from error
    except (*_READERS_FAULTS, yaml.YAMLError) as error:
        raise LossyError(f"{file} is damaged: {next(iter(str(error).splitlines()), '')}", REPLACE) from error


def _refuse_altered(data: Path, sha256: Mapping[str, str]) -> None:
    """Raises LossyError where a file isn't the one whose digest MLmodel has. (Early ones have none.)"""
    for name in (_WEIGHTS, _HPARAMS):
        with _damage_told(data / name):
            found = _sha256(data / name)
        if found != sha256.get(name, found):
            raise LossyError(
                f"{data / name} is damaged: its digest is {found[:12]}..., its MLmodel says {sha256[name][:12]}...",
                REPLACE,
            )


def refuse_unloadable(weights: Mapping[str, Tensor], tree: Hparam) -> None:
    """Raises UsageError where a decoder with these weights, once stored, could not be loaded again: a buffer has grown, say."""
    from lossy_mlflow.checkpoints.rebuild import differences, outline_or_new

    if off := differences(outline_or_new(tree), weights, "trained"):
        raise UsageError(
            f"The decoder of {tree.model_name!r} could be stored and never loaded again: {off}",
            "Give its tensors their final shapes when it is built; "
            "a buffer that need not be stored: register_buffer(..., persistent=False)",
        )


class _Pyfunc:
    """What MLflow calls: z in, the decoder's mean images out; or images in, their features out."""

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = decoder

    def predict(self, model_input: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """x_mean (n, input_vector_length) for z (n, z_size); of a map of features those (n, n_features) of images."""
        import torch

        from lossy_mlflow.models import Decoder, FeatureMap, decode

        given = torch.as_tensor(np.array(model_input, np.float32))
        with torch.no_grad():
            if isinstance(self._decoder, FeatureMap) and not isinstance(self._decoder, Decoder):
                made = self._decoder.features(given)
            else:
                made, _ = decode(self._decoder, given)
        return made.numpy()


def _load_pyfunc(path: str) -> _Pyfunc:
    """The hook that MLflow's pyfunc calls with the folder of the data."""
    from lossy_mlflow.user_code import load_user_code

    load_user_code(None)
    return _Pyfunc(load_model(Path(path).parents[len(_DATA.parts) - 1])[0])


def files_sha256(folder: Path) -> str:
    """One digest over the names and contents of all files below `folder`, as `save_model` wrote them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return combined_sha256({file.relative_to(folder).as_posix(): _sha256(file) for file in files})


def combined_sha256(digests: Mapping[str, str]) -> str:
    """The same from the SHA-256 of each file, by its path below the folder."""
    lines = [
        f"{digests[path]}  {path}\n"
        for path in sorted(digests, key=lambda path: PurePosixPath(path).parts)
        if PurePosixPath(path).name != MLFLOWS_OWN
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_sha256(folder: Path) -> str:
    """The digest of the weights file of the model in `folder`."""
    return _sha256(folder / _DATA / _WEIGHTS)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
