import math

import pytest

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import (
    MACHINE_FIELDS,
    Hparam,
    diff,
    flatten,
    get_hparams,
    origins,
    run_label,
    set_names,
    set_summary,
    unflatten,
)

MODELS_OF = {
    "digits": ["linear_vae10", "vae2", "vae10", "vae100", "dcvae10"],
    "mnist": ["linear_vae100", "vae2", "vae10", "vae100", "dcvae10", "dcvae100"],
    "fashion_mnist": ["linear_vae100", "vae2", "vae10", "vae100", "dcvae10", "dcvae100"],
    "cifar10": ["vae100", "dcvae10", "dcvae100"],
}
DIMS = {"digits": [1, 8, 8], "mnist": [1, 28, 28], "fashion_mnist": [1, 28, 28], "cifar10": [3, 32, 32]}
SETS = [(f"{model}_{dataset}", model, dataset) for dataset, models in MODELS_OF.items() for model in models]

every_set = pytest.mark.parametrize(("name", "model", "dataset"), SETS)


@pytest.mark.parametrize("dataset", MODELS_OF)
def test_the_sets_of_a_dataset(dataset):
    assert set(set_names(dataset)) >= {f"{model}_{dataset}" for model in MODELS_OF[dataset]}


@every_set
def test_the_name_says_model_latent_size_and_data(name, model, dataset):
    tree = get_hparams(name)
    kind = {"linear_vae": "linear_vae", "vae": "deep_vae", "dcvae": "dcgan_vae"}
    assert tree.model_name == kind[model.rstrip("0123456789")]
    assert str(tree.model_train.z_size) == model.lstrip("abcdefghijklmnopqrstuvwxyz_")
    assert tree.dataset.name == dataset
    assert tree.dataset.input_dims == DIMS[dataset]
    assert tree.dataset.input_vector_length == math.prod(tree.dataset.input_dims)
    assert tree.group_list == ["vaes", dataset]


@every_set
def test_a_set_has_what_its_model_needs_and_no_more(name, model, dataset):
    train = get_hparams(name).model_train
    assert (train.hidden_sizes is not None) == model.startswith("vae")
    assert (train.n_filters is not None) == model.startswith("dcvae")


@every_set
def test_a_set_leaves_nothing_open(name, model, dataset):
    unset = {key for key, text in flatten(get_hparams(name)).items() if text == "null"}
    as_it_is = {"mixture_weight", "bad_std", "blur_std", "overwrite_variance", "feature_map"}
    assert unset == {
        "load_checkpoint_name",
        "n_val_batch",
        "step_sizes_target",
        *(f"rd.{key}" for key in as_it_is),
    }


@every_set
def test_a_set_is_finished_reads_back_and_is_free_of_the_machine(name, model, dataset):
    tree = get_hparams(name)
    with pytest.raises(UsageError, match="finished"):
        tree.model_train.epochs = 1
    assert unflatten(flatten(tree)) == tree
    assert not {key.rpartition(".")[2] for key in flatten(tree)} & set(MACHINE_FIELDS)


@every_set
def test_a_set_says_in_one_line_what_it_is(name, model, dataset):
    assert 20 < len(set_summary(name)) < 90


@every_set
def test_every_leaf_has_an_origin(name, model, dataset):
    assert all(origins(get_hparams(name)).values())


@every_set
def test_any_set_takes_an_e_name(name, model, dataset):
    assert run_label(name, "try2") == f"{name}_try2"


@every_set
def test_the_rate_distortion_seed_differs_from_the_training_seed(name, model, dataset):
    tree = get_hparams(name)
    assert tree.rd.random_seed != tree.random_seed


def test_vae10_mnist_is_trained_by_the_published_settings_and_evaluated_by_ours():
    assert get_hparams("vae10_mnist") == Hparam(
        group_list=["vaes", "mnist"],
        model_name="deep_vae",
        random_seed=6,
        learning_rate=1e-4,
        load_checkpoint_name=None,
        chkt_step=-2,
        n_val_batch=None,
        checkpointing_freq=50,
        start_checkpointing=50,
        n_iwae_samples=0,
        step_sizes_target=None,
        model_train=Hparam(
            z_size=10,
            batch_size=100,
            epochs=1000,
            x_var=0.03,
            x_var_learned=True,
            hidden_sizes=[1024, 1024, 1024],
        ),
        dataset=Hparam(name="mnist", train=True, input_dims=[1, 28, 28], input_vector_length=784),
        rd=Hparam(
            target="mse",
            estimator="ais",
            data="test",
            batch_size=50,
            n_batch=1,
            n_chains=16,
            anneal_steps=1000,
            n_betas=100,
            min_beta=0.03,
            max_beta=36_000.0,
            leapfrog_steps=2,
            target_acceptance=0.8,
            pilot_seed=6,
            random_seed=7,
            gap_beta_indexes=[30, 60, -1],
            gap_images=16,
            mixture_weight=None,
            bad_std=None,
            blur_std=None,
            overwrite_variance=None,
            feature_map=None,
            encoder_epochs=50,
            log_likelihood=False,
        ),
    )


@pytest.mark.parametrize(
    ("name", "max_beta", "anneal_steps", "leapfrog_steps"),
    [
        ("vae2_mnist", 36_000.0, 1000, 2),
        ("dcvae10_fashion_mnist", 36_000.0, 1000, 2),
        ("vae100_mnist", 3333.0, 1500, 4),
        ("dcvae100_fashion_mnist", 3333.0, 1500, 4),
        ("vae10_digits", 1000.0, 1000, 2),
        ("vae100_digits", 1000.0, 1500, 4),
        ("dcvae10_cifar10", 3333.0, 1000, 2),
        ("dcvae100_cifar10", 3333.0, 1000, 2),
    ],
)
def test_the_largest_beta_is_of_the_images_and_the_steps_of_the_latent_size(
    name, max_beta, anneal_steps, leapfrog_steps
):
    rd = get_hparams(name).rd
    assert (rd.max_beta, rd.anneal_steps, rd.leapfrog_steps) == (max_beta, anneal_steps, leapfrog_steps)


def test_fashion_mnist_differs_from_mnist_by_its_images_alone():
    for model in MODELS_OF["mnist"]:
        changes = diff(get_hparams(f"{model}_mnist"), get_hparams(f"{model}_fashion_mnist"))
        assert [change.key for change in changes] == ["dataset.name", "group_list"]
