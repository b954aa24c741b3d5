import pytest

from lossy_mlflow.errors import UsageError
from lossy_mlflow.hparams import Hparam, diff, flatten, hparams_sha256, read_value, unflatten


def test_flatten_writes_json_and_bare_strings():
    tree = Hparam(
        model_name="deep_vae",
        learning_rate=1e-4,
        chkt_step=-2,
        load_checkpoint_name=None,
        model_train=Hparam(z_size=100, x_var_learned=True),
        dataset=Hparam(input_dims=[1, 28, 28]),
        notes=Hparam(),
        group_list=["icml", "VAEs"],
    )
    assert flatten(tree) == {
        "model_name": "deep_vae",
        "learning_rate": "0.0001",
        "chkt_step": "-2",
        "load_checkpoint_name": "null",
        "model_train.z_size": "100",
        "model_train.x_var_learned": "true",
        "dataset.input_dims": "[1, 28, 28]",
        "notes": "{}",
        "group_list": '["icml", "VAEs"]',
    }


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("deep_vae", "deep_vae"),
        ("two words", "two words"),
        ("naïve", "naïve"),
        ("1e-3 or so", "1e-3 or so"),
        ("100", '"100"'),
        ("true", '"true"'),
        ("NaN", '"NaN"'),
        ("{}", '"{}"'),
        ('"quoted"', r'"\"quoted\""'),
        ('"half', '"half'),
        ("", '""'),
        (" blank", '" blank"'),
        ("a\tb", r'"a\tb"'),
        ("a\u00a0b", r'"a\u00a0b"'),
        ("\ud800", r'"\ud800"'),
        ("\0", r'"\u0000"'),
    ],
)
def test_a_string_is_quoted_only_where_it_must(text, written):
    assert flatten(Hparam(x=text)) == {"x": written}
    assert read_value(written) == text


def test_text_that_overflows_the_json_reader_is_a_string():
    deep = "[" * 100_000
    assert read_value(deep) == deep
    assert unflatten(flatten(Hparam(x=deep))).x == deep


def test_unflatten_doesn_t_need_the_order():
    assert unflatten({"a.b.c": "1", "d": "x", "a.e": "{}"}) == Hparam(
        a=Hparam(e=Hparam(), b=Hparam(c=1)), d="x"
    )


@pytest.mark.parametrize("keys", [["a", "a.b"], ["a.b", "a"], ["a.b.c", "a"]])
def test_a_key_can_t_be_a_value_and_a_sub_tree(keys):
    for text in ("1", "{}", "null"):
        with pytest.raises(UsageError, match="a is both a value and a sub-tree"):
            unflatten(dict.fromkeys(keys, text))


@pytest.mark.parametrize(
    "mapping",
    [
        {"": "1"},
        {"a..b": "1"},
        {"a-b": "1"},
        {"a.": "1"},
        {"a": '{"b": 1}'},
        {"a": "[{}]"},
        {".".join("a" * 9000): "1"},
    ],
)
def test_what_no_tree_gives_is_refused(mapping):
    with pytest.raises(UsageError):
        unflatten(mapping)


def test_the_sha_is_fixed_for_ever():
    """Stored in runs and versions: a change of the writing would make every earlier run look different."""
    tree = Hparam(b=Hparam(x=[1, 2.5, None, True, "é"]), a="\ud800")
    assert hparams_sha256(tree) == "b10f4260bd43a214faef35f372e5cafb28fdf3b73bb3a49a1708d4eade7d1f4a"
    assert hparams_sha256(Hparam(a="\ud800", b=Hparam(x=[1, 2.5, None, True, "é"]))) == hparams_sha256(tree)


def test_diff_prints_one_line_a_leaf():
    a = Hparam(model_train=Hparam(epochs=200, z_size=10), same=1, gone="x")
    b = Hparam(model_train=Hparam(epochs=5, z_size=10.0), same=1, new=None)
    assert [str(difference) for difference in diff(a, b)] == [
        "gone: x -> (absent)",
        "model_train.epochs: 200 -> 5",
        "model_train.z_size: 10 -> 10.0",
        "new: (absent) -> null",
    ]
