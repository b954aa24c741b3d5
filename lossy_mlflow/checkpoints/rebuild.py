"""A decoder built anew: from the tree that names its model, and the tensors that were stored. Or why it can't be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lossy_mlflow.checkpoints.flavor import REPLACE, Description
from lossy_mlflow.errors import ConflictError, LossyError, NotFoundError
from lossy_mlflow.hparams import Hparam
from lossy_mlflow.models import build_model, build_outline, decoder_of, model_names
from lossy_mlflow.training import seeded

if TYPE_CHECKING:
    from torch import Tensor, nn


class UnregisteredModelError(NotFoundError):
    """The decoder is of a model that isn't registered here. `run_id` ('' if unknown): the run that made it."""

    def __init__(self, what: str, hint: str, run_id: str) -> None:
        super().__init__(what, hint)
        self.run_id = run_id


def rebuilt(weights_file: Path, tree: Hparam, device: str, about: Description) -> nn.Module:
    """The decoder that `tree` describes, with the tensors of the safetensors file, in evaluation mode on `device`.

    Raises UnregisteredModelError where the model isn't here; ConflictError where the tensors don't fit it; LossyError where they
    can't be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    decoder = outline_or_new(tree, about)
    try:
        # Whatever device they were trained on, they were stored from the CPU.
        weights = load_file(weights_file)
    except (SafetensorError, OSError) as error:
        raise LossyError(f"The weights in {weights_file} can't be read: {error}", REPLACE) from error
    if off := differences(decoder, weights, "stored"):
        raise ConflictError(
            f"The stored weights don't fit the model {tree.model_name!r}: {off}; they were written {about.written}.",
            "Was the model changed since? Load it with the code that trained it (the run's git_commit, its user_code).",
        )
    if not _has_numbers(decoder):
        own = decoder.state_dict()
        # Copies: what load_file gives is the file itself, mapped into memory; whoever cut it short would kill this process.
        numbers = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in weights.items()}
        decoder.load_state_dict(numbers, assign=True)
        if _has_numbers(decoder):
            return decoder.to(device).eval()
        decoder = _new_decoder(tree)  # something in it isn't stored
    decoder.load_state_dict(weights)
    return decoder.to(device).eval()


def outline_or_new(tree: Hparam, about: Description | None = None) -> nn.Module:
    """A decoder with the right names and shapes; without numbers if it is of a model of ours: drawing them takes ten times as
    long as reading those that are stored.
    """
    outline = build_outline(tree)
    if outline is not None:
        return decoder_of(outline)
    if about and tree.model_name not in model_names():
        download = f"mlflow artifacts download --run-id {about.run_id} --artifact-path attempts --dst-path ."
        raise UnregisteredModelError(
            f"The decoder is of the model {tree.model_name!r}, which isn't registered here; it was written {about.written}.",
            f"Name the file that registers it: --user-code FILE, or export LOSSY_USER_CODE=FILE"
            f"{f'    Its run has it: {download}' if about.run_id else ''}    A newer lossy-mlflow may have it, too.",
            about.run_id,
        )
    return _new_decoder(tree)


def _new_decoder(tree: Hparam) -> nn.Module:
    # Seeded as it was for training: what is drawn when it is built and never stored is the same again. And whoever trains, or
    # loads, finds torch's generator as it was.
    with seeded(tree.random_seed or 0):
        return decoder_of(build_model(tree))


def _has_numbers(module: nn.Module) -> bool:
    """Whether none of its tensors is an outline's, also of those that are not stored."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [
        value for part in module.modules() for value in vars(part).values() if hasattr(value, "is_meta")
    ]
    return not any(tensor.is_meta for tensor in tensors)


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
