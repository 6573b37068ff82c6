"""What may be loaded, and what is refused: foreign code, pickles, damaged folders."""

import json
import shutil

import pytest

from embedserve import CorruptFileError, Encoder, EncoderSpec, LoadError, NotFoundError
from embedserve.backbone import weights_digest
from tests.tiny import SENTENCES


@pytest.fixture
def saved(tiny_llama, tmp_path):
    Encoder.load(EncoderSpec("echo", str(tiny_llama)), device="cpu").save(tmp_path / "saved")
    return tmp_path / "saved"


def test_an_unknown_model_is_not_found(tmp_path):
    for name in ("no-such-model", str(tmp_path / "nowhere"), "owner/no-such-model", "a b:c"):
        with pytest.raises(NotFoundError, match="Give a folder"):
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
    expected = LoadError if damage == "remove" else CorruptFileError
    with pytest.raises(expected, match="weights" if damage == "remove" else r"model\.safetensors"):
        Encoder.load(saved, device="cpu")


def test_another_format_version_is_refused(saved):
    record = json.loads((saved / "embedserve.json").read_text())
    (saved / "embedserve.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(CorruptFileError, match="format 99"):
        Encoder.load(saved, device="cpu")
    (saved / "embedserve.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="not readable"):
        Encoder.load(saved, device="cpu")


def test_saving_replaces_an_encoder_and_nothing_else(saved, tiny_llama, tmp_path):
    mean = Encoder.load(str(tiny_llama), device="cpu")
    mean.save(saved)
    assert Encoder.load(saved, device="cpu").spec.strategy == "mean"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(LoadError, match="no saved encoder"):
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
