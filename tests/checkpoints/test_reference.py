import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossy_mlflow.checkpoints.reference import Reference, parse_reference
from lossy_mlflow.errors import UsageError

names = st.text(min_size=1, max_size=30).filter(
    lambda s: s.isprintable() and s == s.strip() and not set(s) & set("@/:")
)
aliases = st.from_regex(r"\A[A-Za-z][\w-]{0,20}\Z")
references = st.one_of(
    st.builds(Reference, names),
    st.builds(Reference, names, alias=aliases),
    st.builds(Reference, names, version=st.integers(1, 10**9)),
)


@given(references)
def test_a_reference_reads_back_as_it_is_written(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert parse_reference(f"models:/{reference}") == reference


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError:
        return
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text", ["", "@best", "a@", "a/b", "a@b@c", "a/1/2", "a@best/1", "models:/", " a", "runs:/1/x", "a/0"]
)
def test_what_is_no_reference_says_which_forms_there_are(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert caught.value.hint
