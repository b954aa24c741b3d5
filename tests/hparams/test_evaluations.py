"""The paper's evaluations by name: what they are of, how they differ, and that each can be carried out as it stands."""

import pytest

from lossy_mlflow.errors import ConflictError, UsageError
from lossy_mlflow.experiments.rd_settings import rd_settings
from lossy_mlflow.hparams import (
    MACHINE_FIELDS,
    Hparam,
    diff,
    evaluate_command,
    evaluates,
    flatten,
    get_hparams,
    origins,
    register_hparams,
    set_dataset,
    set_names,
    set_summary,
    train_command,
)

EVALUATIONS = [name for name in set_names() if evaluates(get_hparams(name))]
every_evaluation = pytest.mark.parametrize("name", EVALUATIONS)


def changed(a: str, b: str) -> dict[str, str | None]:
    return {change.key: change.b for change in diff(get_hparams(a), get_hparams(b))}


@every_evaluation
def test_it_can_be_carried_out_as_it_stands(name):
    tree = get_hparams(name)
    settings = rd_settings(tree)
    assert max(settings.betas) == tree.rd.max_beta
    assert bool(settings.gap_betas) == (settings.estimator == "ais")
    assert tree.group_list
    assert tree.group_list[0] == "icml"
    assert all(origins(tree).values())
    assert not {key.rpartition(".")[2] for key in flatten(tree)} & set(MACHINE_FIELDS)
    assert 20 < len(set_summary(name)) < 90


@every_evaluation
def test_it_is_of_a_set_that_trains_or_is_imported(name):
    evaluated = get_hparams(get_hparams(name).load_checkpoint_name)
    assert not evaluates(evaluated)
    assert set_dataset(get_hparams(name)) == evaluated.dataset.name
    assert train_command(name) is None
    assert evaluate_command(name) == f"lossy evaluate {name}"


@pytest.mark.parametrize("name", [name for name in EVALUATIONS if name.endswith("_rerun")])
def test_a_second_round_is_the_first_with_its_tuning_and_another_seed(name):
    first = name.removesuffix("_rerun")
    if evaluates(get_hparams(first)):
        assert changed(first, name) == {"step_sizes_target": first, "rd.random_seed": "8"}
    else:
        tree, of = get_hparams(name), get_hparams(first)
        assert (tree.load_checkpoint_name, tree.step_sizes_target) == (first, first)
        assert flatten(tree.rd) == flatten(of.rd) | {"random_seed": "8"}


def test_all_of_the_vaes_are_there():
    rounds = [
        *(
            "icml_vae10_blur01",
            "icml_vae10_blur05",
            "icml_vae10_blur1",
            "icml_vae10_blur2",
            "icml_vae10_blur5",
        ),
        *(f"icml_vae10_mp_0{percent}" for percent in (10, 20, 50, 80, 90, 99)),
        *("icml_vae2_rd", "icml_vae10_rd", "icml_vae100", "icml_linear_vae100"),
        *("BDMC_icml_vae2_rd", "BDMC_icml_vae10_rd", "BDMC_icml_vae100"),
        *("fid_icml_vae2_rd", "fid_icml_vae10_rd"),
    ]
    names = {*rounds, *(f"{name}_rerun" for name in rounds)}
    names |= {f"vae{z_size}_rd_baseline_icml" for z_size in (2, 10, 100)}
    names |= {f"icml_vae10_rerun_rs{seed}" for seed in range(11, 17)}
    assert names <= set(set_names())
    # With the GANs and autoencoders 141 of the paper's 142: the other is a second name of one of them.
    published = [name for name in set_names() if "icml" in name]
    assert len(published) == 141


def test_what_each_kind_changes():
    first = "icml_vae10_rd_rerun"
    same = {"rd.random_seed": "7", "step_sizes_target": "null"}
    assert changed(first, "icml_vae10_blur05") == same | {
        "group_list": '["icml", "VAEs", "blur"]',
        "rd.blur_std": "0.5",
    }
    assert changed(first, "icml_vae10_mp_099") == same | {
        "group_list": '["icml", "VAEs", "mixture"]',
        "rd.mixture_weight": "0.99",
        "rd.bad_std": "10.0",
    }
    assert changed(first, "BDMC_icml_vae10_rd") == same | {
        "rd.data": "simulate",
        "rd.gap_beta_indexes": "[18, 25, -1]",
    }
    assert changed(first, "vae10_rd_baseline_icml") == same | {
        "rd.estimator": "variational",
        "rd.min_beta": "0.001",
        "rd.max_beta": "50000.0",
        "rd.n_betas": "49",
        "rd.gap_beta_indexes": "[]",
    }
    assert changed(first, "fid_icml_vae10_rd") == same | {
        "rd.target": "features",
        "rd.feature_map": "cnn_mnist",
        "rd.min_beta": "0.0001",
        "rd.max_beta": "0.33",
    }
    assert changed(first, "icml_vae10_rerun_rs13") == {"rd.random_seed": "13"}


def test_gaps_are_measured_near_the_papers_betas():
    """Which are the 20th, 48th and 1990th (200th and 1990th) of its 2000 in a sigmoid schedule of radius 10."""

    def at(name: str) -> list[float]:
        return list(rd_settings(get_hparams(name)).gap_betas)

    assert at("BDMC_icml_vae10_rd") == pytest.approx([0.362, 1.01, 36_000], rel=0.08)
    assert at("BDMC_icml_vae100") == pytest.approx([0.0335, 0.967, 3333], rel=0.08)
    assert at("BDMC_icml_CIFAR10_dcgan10_GP") == pytest.approx([0.0335, 0.0933, 3333], rel=0.08)


def test_a_set_that_names_no_model_and_means_to_train_is_no_evaluation():
    @register_hparams
    def forgot_its_model() -> Hparam:
        tree = get_hparams("vae10_digits")
        return Hparam(model_train=Hparam(z_size=2), rd=tree.rd, dataset=tree.dataset)

    assert not evaluates(get_hparams("forgot_its_model"))


def test_an_evaluation_is_not_trained():
    from lossy_mlflow.experiments import train

    with pytest.raises(
        UsageError, match="trains nothing: it evaluates a decoder of icml_vae10_rd"
    ) as refused:
        train("icml_vae10_rd_rerun")
    assert refused.value.hint == "Evaluate it: lossy evaluate icml_vae10_rd_rerun"


def test_no_file_is_imported_as_an_evaluation(tmp_path):
    from lossy_mlflow.experiments.imports import import_files

    with pytest.raises(UsageError, match="is an evaluation") as refused:
        import_files([str(tmp_path / "x.pth")], name="mine", hparam_set="icml_vae10_blur2")
    assert refused.value.hint == "Name the set that it evaluates: --hparam-set icml_vae10_rd"
    with pytest.raises(ConflictError, match="is the name of an evaluation"):
        import_files([str(tmp_path / "x.pth")], name="icml_vae10_blur2", hparam_set="icml_vae10_rd")
