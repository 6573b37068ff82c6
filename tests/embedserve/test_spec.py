"""EncoderSpec: validation, JSON round trip, fingerprint."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve import EncoderSpec, SpecError
from embedserve.spec import parse_model, parse_spec, spec_difference

SPECS = st.builds(
    EncoderSpec,
    strategy=st.sampled_from(["mean", "echo", "layer_mean"]),
    backbone=st.text("abc/._-", min_size=1),
    options=st.dictionaries(st.text("abc", min_size=1), st.one_of(st.integers(), st.text(), st.none(), st.booleans())),
    post=st.lists(st.sampled_from(["embedfilter:2", "truncate:8"])).map(tuple),
    prompts=st.dictionaries(st.sampled_from(["query", "document"]), st.text()),
    max_tokens=st.one_of(st.none(), st.integers(8, 10_000)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)


@given(SPECS)
def test_json_round_trip(spec):
    again = EncoderSpec.from_json(spec.to_json())
    assert again == spec
    assert again.fingerprint("w") == spec.fingerprint("w")
    assert hash(again) == hash(spec)
    assert pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec) == spec


@given(SPECS, SPECS)
def test_equal_fingerprints_mean_equal_specs_except_for_the_path(one, other):
    changed = set(spec_difference(one.to_dict(), other.to_dict())) - {"backbone"}
    assert (one.fingerprint("w") == other.fingerprint("w")) == (not changed)


def test_the_fingerprint_depends_on_the_weights_not_the_path():
    here, there = EncoderSpec(backbone="here"), EncoderSpec(backbone="there")
    assert here.fingerprint("w") == there.fingerprint("w")
    assert here.fingerprint("w") != here.fingerprint("v")


def test_an_empty_prompt_is_no_prompt():
    assert EncoderSpec(prompts={"query": ""}) == EncoderSpec()


def test_a_spec_cannot_be_changed():
    spec = EncoderSpec(options={"ratio": 2})
    with pytest.raises(TypeError):
        spec.options["ratio"] = 3
    with pytest.raises(AttributeError):
        spec.strategy = "echo"
    spec = EncoderSpec("layer_mean", options={"layers": [1]})
    spec.to_dict()["options"]["layers"].append(2)
    assert spec.options["layers"] == [1]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"strategy": ""}, "strategy"),
        ({"backbone": 7}, "backbone"),
        ({"post": "truncate:8"}, "post"),
        ({"prompts": {"doc": "x"}}, "prompts"),
        ({"prompts": {"query": 1}}, "prompts"),
        ({"prompts": {1: "x", "doc": "x"}}, "prompts"),
        ({"prompts": {"query": "half a pair \ud800"}}, "prompts"),
        ({"options": {"before": "half a pair \ud800"}}, "options"),
        ({"options": {"weights": [float("inf")]}}, "options"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"max_tokens": "512"}, "max_tokens"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_an_invalid_field_is_named_in_the_error(values, field):
    with pytest.raises(SpecError) as caught:
        EncoderSpec(**values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "not JSON"), ("[]", "object"), ('{"stratgy": "mean"}', "did you mean 'strategy'"), ('{"post": 3}', "post")],
)
def test_an_unreadable_spec_is_refused_with_the_reason(text, word):
    with pytest.raises(SpecError, match=word):
        EncoderSpec.from_json(text)


def test_options_must_be_json():
    with pytest.raises(SpecError, match="JSON"):
        EncoderSpec(options={"a": object()})


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("mean", EncoderSpec("mean")),
        ("embedfilter:ratio=4,drop=head", EncoderSpec("embedfilter", options={"ratio": 4, "drop": "head"})),
        ("mean+embedfilter:2+truncate:64", EncoderSpec("mean", post=("embedfilter:2", "truncate:64"))),
        ("layer_mean:layers=[1,4],norm=none", EncoderSpec("layer_mean", options={"layers": [1, 4], "norm": "none"})),
        ("mean@./llama", EncoderSpec("mean", "./llama")),
        ("nano", EncoderSpec(backbone="nano")),
        ("./models/one", EncoderSpec(backbone="./models/one")),
        ('{"strategy": "echo", "max_tokens": 64}', EncoderSpec("echo", max_tokens=64)),
    ],
)
def test_a_spec_in_one_line(text, spec):
    assert parse_spec(text) == spec


def test_omitted_fields_of_a_line_come_from_the_caller():
    assert parse_spec("echo", backbone="./llama") == EncoderSpec("echo", "./llama")
    assert parse_spec("echo@./other", backbone="./llama") == EncoderSpec("echo", "./other")
    assert parse_spec('{"strategy": "echo"}', backbone="./llama") == EncoderSpec("echo", "./llama")
    assert parse_spec('{"backbone": "./other"}', backbone="./llama", dtype="bfloat16").backbone == "./other"


@pytest.mark.parametrize("text", ["", "mean:ratio", "{", '{"strateggy": "mean"}'])
def test_a_line_that_is_not_a_spec_is_refused(text):
    with pytest.raises(SpecError):
        parse_spec(text)


def test_a_line_is_the_name_of_a_model_or_a_spec(tmp_path):
    folder = tmp_path / "runs@2"
    folder.mkdir()
    for name in (str(folder), "nano", "owner/model"):
        assert parse_model(name) == name
    assert parse_model("glot") == EncoderSpec("glot")
    assert parse_model("mean@owner/model") == EncoderSpec("mean", "owner/model")
    assert parse_model(EncoderSpec("glot").to_json()) == EncoderSpec("glot")
