"""Hypothesis strategies for hparam trees: any plain values, and the strings that are likely to go wrong."""

from hypothesis import strategies as st

from lossy_mlflow.hparams import Hparam

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True)
# Strings that look like something else, and ones that no terminal would show.
odd_strings = st.sampled_from(
    [
        "null",
        "true",
        "1",
        "1.0",
        "-0",
        "NaN",
        "Infinity",
        "{}",
        "[]",
        "[1",
        "{",
        '"',
        '"a"',
        '{"a": 1}',
        "a=b",
        "--set",
    ]
) | st.sampled_from(
    [
        "",
        " ",
        " x",
        "x ",
        "a\nb",
        "\0",
        "\ud800",
        "\u00a0",
        "é",
        "名前",
        "[" * 5000,
        "1" * 5000,
        "$(rm)",
        "\\",
        "''",
    ]
)
any_text = st.text(st.characters(codec=None)) | odd_strings
plain = st.none() | st.booleans() | st.integers() | st.floats() | any_text
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def node(children: st.SearchStrategy) -> st.SearchStrategy[Hparam]:
    return st.dictionaries(names, values | children, max_size=5).map(lambda made: Hparam(**made))


trees = st.recursive(node(st.nothing()), node, max_leaves=5)
