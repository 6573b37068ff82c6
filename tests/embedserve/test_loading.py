"""What may be loaded, and what is refused: foreign code, pickles, damaged folders."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedserve import CorruptFileError, Encoder, EncoderSpec, LoadError, NotFoundError, SpecError
from embedserve.backbone import load_language_model, load_unembedding
from embedserve.folders import write_record
from embedserve.loading.reference import reference_vectors
from embedserve.loading.saved import save as write
from embedserve.model_folders import weights_digest
from tests.tiny import SENTENCES


@pytest.fixture
def saved(tiny_llama, tmp_path):
    Encoder.load(EncoderSpec("echo", str(tiny_llama)), device="cpu").save(tmp_path / "saved")
    return tmp_path / "saved"


def test_an_unknown_model_is_not_found(tmp_path):
    for name in ("no-such-model", str(tmp_path / "nowhere"), "owner/no-such-model", "a b:c", "~nobody/x", "x" * 5000):
        with pytest.raises(NotFoundError, match="Use a folder"):
            Encoder.load(name, device="cpu")


def test_a_folder_without_weights_says_what_it_needs(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="no weights; it needs"):
        Encoder.load(str(folder), device="cpu")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(LoadError, match="only pickled weights"):
        Encoder.load(str(folder), device="cpu")
    (folder / "config.json").unlink()
    with pytest.raises(LoadError, match=r"no config\.json"):
        Encoder.load(str(folder), device="cpu")


def test_a_file_is_no_model(tiny_llama):
    with pytest.raises(LoadError, match="is a file"):
        Encoder.load(str(tiny_llama / "config.json"), device="cpu")


def test_foreign_code_is_refused(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(LoadError, match="auto_map"):
        Encoder.load(str(folder), device="cpu")
    (folder / "config.json").write_text("{")
    with pytest.raises(LoadError, match="not JSON"):
        Encoder.load(str(folder), device="cpu")


def test_damaged_weights_are_refused_without_a_traceback_of_others(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LoadError, match=r"model\.safetensors|weights"):
        Encoder.load(str(folder), device="cpu")


def damage(source, folder, change):
    """Copy a model folder; ``change`` alters its weights and its configuration in place."""
    shutil.copytree(source, folder)
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(weights, config)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("strategy", ["mean", "echo"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_a_weight_that_is_missing_is_never_made_up(tiny_models, tmp_path, family, strategy):
    def drop(weights, config):
        del weights[next(name for name in sorted(weights) if ".2." in name and name.endswith("weight"))]

    folder = damage(tiny_models[family], tmp_path / "model", drop)
    with pytest.raises(LoadError, match=r"lack .*\.2\."):
        Encoder.load(EncoderSpec(strategy, str(folder)), device="cpu")
    with pytest.raises(LoadError, match=r"lack .*\.2\."):
        load_language_model(folder)


def test_weights_of_another_shape_are_named_with_both_shapes(tiny_llama, tmp_path):
    folder = damage(tiny_llama, tmp_path / "model", lambda weights, config: config.update(vocab_size=300))
    with pytest.raises(LoadError, match=r"embed_tokens\.weight .*\(400, 32\).*\(300, 32\)"):
        Encoder.load(str(folder), device="cpu")


def test_a_tokenizer_of_another_model_is_refused(tiny_llama, tmp_path):
    def shrink(weights, config):
        config["vocab_size"] = 100
        for name in [name for name, weight in weights.items() if len(weight) == 400]:
            weights[name] = weights[name][:100].clone()

    with pytest.raises(LoadError, match="400 entries, but the model has 100 embeddings"):
        Encoder.load(str(damage(tiny_llama, tmp_path / "model", shrink)), device="cpu")


def test_weights_that_are_no_numbers_are_refused(tiny_llama, tmp_path):
    def spoil(weights, config):
        weights["model.layers.1.mlp.up_proj.weight"][:] = float("nan")

    with pytest.raises(LoadError, match="not finite"):
        Encoder.load(str(damage(tiny_llama, tmp_path / "model", spoil)), device="cpu")


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_a_folder_without_a_tokenizer_is_refused(tiny_models, tmp_path, family):
    folder = shutil.copytree(tiny_models[family], tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match="no tokenizer"):
        Encoder.load(str(folder), device="cpu")


def test_a_foreign_module_class_is_never_imported(saved, tmp_path):
    record = json.loads((saved / "modules.json").read_text())
    record[0]["type"] = "os.system"
    (saved / "modules.json").write_text(json.dumps(record))
    with pytest.raises(LoadError, match=r"os\.system"):
        Encoder.load(saved, device="cpu")


def test_a_pickle_is_never_opened(saved):
    (saved / "1_Pooling" / "extra.pt").write_bytes(b"x")
    with pytest.raises(LoadError, match="pickle"):
        Encoder.load(saved, device="cpu")


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_a_changed_file_is_refused_by_name(saved, damage):
    weights = saved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    changed = {"flip": data, "cut": data[:-1], "grow": data + b"x"}.get(damage)
    weights.unlink() if changed is None else weights.write_bytes(changed)
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        Encoder.load(saved, device="cpu")


def test_an_encoder_is_saved_with_what_it_makes(saved, tiny_llama):
    encoder = Encoder.load(saved, device="cpu")
    made = reference_vectors(Encoder.load(EncoderSpec("echo", str(tiny_llama)), device="cpu"))
    assert encoder.reference is not None and encoder.reference.keys() == made.keys()
    for task, row in made.items():
        np.testing.assert_array_equal(encoder.reference[task], row)
    assert encoder.with_prompts({"query": "another: "}).reference is None
    assert Encoder.load(str(tiny_llama), device="cpu").reference is None
    path = saved / "reference.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(CorruptFileError, match=r"reference\.json is damaged"):
        Encoder.load(saved, device="cpu")


def test_what_a_saved_encoder_makes_is_no_part_of_its_fingerprint(saved, tmp_path):
    encoder = Encoder.load(saved, device="cpu")
    with torch.no_grad():
        next(encoder.model.parameters()).mul_(1.5)
    encoder.save(tmp_path / "one")
    zeros = {task: np.zeros_like(row) for task, row in encoder.reference.items()}
    write(encoder.model, encoder.spec, None, tmp_path / "two", zeros)
    one, two = (Encoder.load(tmp_path / name, device="cpu") for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint != encoder.fingerprint
    assert np.abs(one.reference["query"]).max() > 0 == np.abs(two.reference["query"]).max()


def test_an_encoder_that_was_saved_without_what_it_makes_is_loaded(saved):
    (saved / "reference.json").unlink()
    record = json.loads((saved / "embedserve.json").read_text())
    del record["files"]["reference.json"], record["digest"]
    write_record(saved, record)
    assert Encoder.load(saved, device="cpu").reference is None


def test_another_format_version_is_refused(saved):
    record = json.loads((saved / "embedserve.json").read_text())
    (saved / "embedserve.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(CorruptFileError, match="format 99"):
        Encoder.load(saved, device="cpu")
    (saved / "embedserve.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="not a JSON object"):
        Encoder.load(saved, device="cpu")


def test_saving_replaces_an_encoder_and_nothing_else(saved, tiny_llama, tmp_path):
    mean = Encoder.load(str(tiny_llama), device="cpu")
    mean.save(saved)
    assert Encoder.load(saved, device="cpu").spec.strategy == "mean"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(LoadError, match="not a saved encoder"):
        mean.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_any_sentence_transformers_folder_is_taken_as_it_is(tiny_llama, tmp_path):
    import numpy as np

    encoder = Encoder.load(EncoderSpec("last_token", str(tiny_llama)), device="cpu")
    encoder.save(tmp_path / "saved")
    (tmp_path / "saved" / "embedserve.json").unlink()
    again = Encoder.load(tmp_path / "saved", device="cpu")
    assert again.spec.strategy == "as_saved"
    np.testing.assert_array_equal(again.embed(SENTENCES).vectors, encoder.embed(SENTENCES).vectors)


def test_the_digest_follows_every_byte_that_matters(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    before = weights_digest(folder)
    assert before == weights_digest(tiny_llama)
    (folder / "notes.txt").write_text("nothing")
    assert weights_digest(folder) == before
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert weights_digest(folder) != before


@pytest.mark.parametrize("name", ["tokenizer_config.json", "0_Inner/config.json", "1_Pooling/config.json"])
def test_no_configuration_anywhere_may_name_code(saved, name, tmp_path):
    (saved / "embedserve.json").unlink()
    (saved / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass")
    path = saved / name
    path.parent.mkdir(exist_ok=True)
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(
        json.dumps(values | {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}})
    )
    with pytest.raises(LoadError, match="auto_map"):
        Encoder.load(saved, device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        (["x"], "type and path"),
        ({}, "type and path"),
        ([{"type": "sentence_transformers.models.Pooling", "path": "../other"}], "leads out"),
        ([{"type": "sentence_transformers.util.os.system", "path": ""}], "cannot be loaded"),
    ],
)
def test_a_modules_file_that_makes_no_sense_is_refused(saved, entries, word):
    (saved / "embedserve.json").unlink()
    (saved / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(LoadError, match=word):
        Encoder.load(saved, device="cpu")


def test_an_activation_function_that_is_none_of_torchs_is_refused(saved):
    (saved / "embedserve.json").unlink()
    entries = json.loads((saved / "modules.json").read_text())
    entries.append({"idx": 9, "name": "9", "path": "9_Dense", "type": "sentence_transformers.models.Dense"})
    (saved / "modules.json").write_text(json.dumps(entries))
    (saved / "9_Dense").mkdir()
    values = {"in_features": 2, "out_features": 2, "bias": False, "activation_function": "os.getcwd"}
    (saved / "9_Dense" / "config.json").write_text(json.dumps(values))
    with pytest.raises(LoadError, match=r"os\.getcwd"):
        Encoder.load(saved, device="cpu")


@pytest.mark.parametrize("change", [{"spec": None}, {"files": [1]}, {"files": {"a": "b"}}, {"spec": {"nope": 1}}])
def test_a_record_that_makes_no_sense_is_refused(saved, change):
    record = json.loads((saved / "embedserve.json").read_text())
    write_record(saved, record | change)
    with pytest.raises(CorruptFileError):
        Encoder.load(saved, device="cpu")


def test_a_spec_that_was_edited_is_refused(saved):
    record = (saved / "embedserve.json").read_text()
    (saved / "embedserve.json").write_text(record.replace("Rewrite the following", "Rewrite the foregoing"))
    with pytest.raises(CorruptFileError, match="its digest does not match"):
        Encoder.load(saved, device="cpu")


def test_a_saved_encoder_without_its_modules_is_no_plain_decoder(saved):
    (saved / "modules.json").unlink()
    with pytest.raises(CorruptFileError, match=r"modules\.json is missing"):
        Encoder.load(saved, device="cpu")


@pytest.mark.parametrize("fields", [{"prompts": {"query": "find: "}}, {"post": ("truncate:8",)}, {"max_tokens": 32}])
def test_a_saved_encoder_takes_no_other_spec(saved, fields):
    with pytest.raises(SpecError, match=f"whose {next(iter(fields))} cannot be changed"):
        Encoder.load(EncoderSpec("as_saved", str(saved), **fields), device="cpu")
    (saved / "embedserve.json").unlink()
    again = Encoder.load(saved, device="cpu")
    assert Encoder.load(again.spec, device="cpu").fingerprint == again.fingerprint


def test_a_file_that_was_not_saved_is_refused(saved):
    (saved / "1_Pooling" / "more.json").write_text("{}")
    with pytest.raises(CorruptFileError, match=r"more\.json is not part of"):
        Encoder.load(saved, device="cpu")


def test_an_adapter_is_refused(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere/else"}')
    with pytest.raises(LoadError, match="adapters"):
        Encoder.load(str(folder), device="cpu")


def test_an_unembedding_is_never_made_up(saved):
    with pytest.raises(LoadError, match="no unembedding"):
        load_unembedding(saved)


def test_training_changes_the_fingerprint_of_what_is_saved(tiny_llama, tmp_path):
    encoder = Encoder.load(str(tiny_llama), device="cpu")
    encoder.save(tmp_path / "same")
    assert Encoder.load(tmp_path / "same", device="cpu").fingerprint == encoder.fingerprint
    with torch.no_grad():
        next(iter(encoder.model.parameters())).mul_(1.5)
    encoder.save(tmp_path / "trained")
    trained = Encoder.load(tmp_path / "trained", device="cpu")
    assert trained.fingerprint != encoder.fingerprint
    assert trained.spec == encoder.spec


def test_a_saved_encoder_is_found_by_home_folder_and_keeps_its_recipe(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    again = Encoder.load("~/saved", device="cpu")
    assert again.spec.strategy == "echo"
    assert again.name == "saved"
    with pytest.raises(SpecError, match="whose strategy cannot be changed"):
        Encoder.load(EncoderSpec("last_token", str(saved)), device="cpu")
    assert Encoder.load(EncoderSpec("as_saved", str(saved)), device="cpu").fingerprint == again.fingerprint


def test_every_file_of_a_foreign_folder_counts_for_its_fingerprint(saved):
    (saved / "embedserve.json").unlink()
    before = Encoder.load(saved, device="cpu").fingerprint
    config = json.loads((saved / "sentence_bert_config.json").read_text())
    (saved / "sentence_bert_config.json").write_text(json.dumps(config) + "\n")
    assert Encoder.load(saved, device="cpu").fingerprint != before


def test_more_tokens_than_positions_are_refused(tiny_models):
    with pytest.raises(SpecError, match="positions for 256"):
        Encoder.load(EncoderSpec("mean", str(tiny_models["gpt2"]), max_tokens=1000), device="cpu")
