"""What the published weights are called here: the first experiment of the paper's catalogue that uses each. Pure."""

from __future__ import annotations

# By what they call the training, and then by the hash of its base settings.
_GANS = {
    "cifar10_may18_bre_dcgan": {
        "0x47890899": "icml_CIFAR10_dcgan5_BRE",
        "0x435c0841": "icml_CIFAR10_dcgan10_BRE",
        "0x4ea60959": "icml_CIFAR10_dcgan100_BRE",
    },
    "cifar10_may21_spectral_dcgan": {
        "0x57cb0a10": "icml_CIFAR10_dcgan5_SN",
        "0x476d0977": "icml_CIFAR10_dcgan10_SN",
        "0x501c09f0": "icml_CIFAR10_dcgan100_SN",
    },
    "cifar10_may16_gp_dcgan": {
        "0x37ab0672": "icml_CIFAR10_dcgan5_GP",
        "0x5068093f": "icml_CIFAR10_dcgan10_GP",
        "0x4918090c": "icml_CIFAR10_dcgan100_GP",
    },
    "cifar10_may16_vanilla_dcgan": {
        "0x38930725": "icml_CIFAR10_dcgan5_V",
        "0x3b4c07f5": "icml_CIFAR10_dcgan10_V",
        "0x5c180a3b": "icml_CIFAR10_dcgan100_V",
    },
    "mnist_may17_gp_mlp-big": {"0x43a407bc": "icml_deep_gan5_GP", "0x4f6d0964": "icml_deep_gan10_GP"},
    "mnist_final2_gp_mlp-big": {"0x32dc06b8": "icml_deep_gan2_GP"},
    "mnist_debug4_mnist_gp": {"0x461907a5": "icml_deep_gan100_GP"},
    "mnist_may16_gp_mlp-small": {"0x3e3c07fc": "icml_shallow_gan5_GP", "0x520309ca": "icml_shallow_gan10_GP"},
    "mnist_final_gp_mlp-small": {
        "0x445c0795": "icml_shallow_gan2_GP",
        "0x3c6f0702": "icml_shallow_gan100_GP",
    },
    "mnist_may17_vanilla_mlp-big": {
        "0x448808df": "icml_deep_gan5_v_rerun",
        "0x3afd080f": "icml_deep_gan10_v_rerun",
    },
    "mnist_final2_vanilla_mlp-big": {"0x4038085a": "icml_deep_gan2_v_rerun"},
    "mnist_may16_vanilla_mlp-small": {
        "0x432b071c": "icml_shallow_gan5_V_rerun",
        "0x3379057d": "icml_shallow_gan10_V_rerun",
    },
    "mnist_final_vanilla_mlp-small": {"0x3545061e": "icml_shallow_gan2_v_rerun"},
}
_AAE_SUFFIX = "_weights_numpy"
_AAES = {
    "aae_h2_det_reg1_auto001_annealed_epoch5000": "icml_aae2",
    "aae_h10_det_reg1_auto01_annealed_epoch5000": "icml_aae10",
    "aae_h100_stoch_reg01_auto01_test": "icml_aae100",
}


def gan_name(folder: str, settings_hash: str) -> str:
    """The model of a folder of weights, NOTE_LT_delta-D_base-B_LT: the experiment's, else NOTE_B, which is unlike all others."""
    note = folder.partition("_LT_")[0]
    base = settings_hash.partition("base-")[2].removesuffix("_LT") or settings_hash
    return _GANS.get(note, {}).get(base, f"{note}_{base}")


def aae_name(file: str) -> str:
    """The model of a file of arrays, by its name without .npz: the experiment's, else the file's."""
    training = file.removesuffix(_AAE_SUFFIX)
    return _AAES.get(training, training)
