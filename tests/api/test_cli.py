"""The command line: what each command gives, what it says of bad input, and with which exit code."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from api.cli.console import arguments_or_lines, for_stream, out, stdin_lines
from api.cli.index_build import name_from
from api.cli.progress import Meter, clock
from api.cli.search import headline
from embedserve import Encoder, InputError
from indexing import Hit, build_collection
from indexing.collections.catalog import collection_path
from tests.api.conftest import DOCUMENTS

STOP = ["--on-error", "stop"]
TEXTS = ["rain", "a small dog", "東京"]


def in_bash(command):
    """Run a line of bash in which CLI is the command line."""
    line = command.replace("CLI", f"{sys.executable} -m api.cli")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "My Notes"
    folder.mkdir()
    (folder / "plants.md").write_text("The plants were watered on monday.")
    (folder / "cat.txt").write_text("The cat sleeps in the garden.")
    return folder


@pytest.fixture
def model(tiny_llama, monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_MODEL", str(tiny_llama))
    return tiny_llama


@pytest.fixture
def here(data_dir, monkeypatch):
    monkeypatch.setenv("EMBEDSERVE_DATA_DIR", str(data_dir))
    return data_dir


class TestEmbed:
    def test_arguments_give_a_line_each(self, shell, model, encoder):
        result = shell("embed", *TEXTS)
        assert (result.code, result.err) == (0, "")
        lines = [json.loads(line) for line in result.out.splitlines()]
        assert [line["index"] for line in lines] == [0, 1, 2]
        np.testing.assert_allclose([line["embedding"] for line in lines], encoder.embed(TEXTS).vectors, atol=1e-5)

    @pytest.mark.parametrize("arguments", [[], ["-"]])
    def test_standard_input_gives_a_line_each(self, shell, model, encoder, arguments):
        result = shell(
            "embed", *arguments, "--task", "query", "-d", "4", stdin="\ufeffrain\r\na small dog\n東京".encode()
        )
        vectors = [json.loads(line)["embedding"] for line in result.out.splitlines()]
        np.testing.assert_allclose(vectors, encoder.embed(TEXTS, "query", dimensions=4).vectors, atol=1e-5)

    def test_json_is_the_answer_of_the_api(self, shell, model, client):
        answer = shell("embed", "--json", *TEXTS).json
        over_http = client.post("/embed", json={"input": TEXTS}).json()
        for one, other in zip(answer.pop("data"), over_http.pop("data"), strict=True):
            np.testing.assert_allclose(one.pop("embedding"), other.pop("embedding"), atol=1e-5)
            assert one == other
        assert over_http.pop("timing_ms").keys() == {"tokenize", "queue", "compute", "total"}
        assert answer == over_http

    def test_an_array_goes_to_a_file_or_to_stdout(self, shell, model, encoder, tmp_path):
        file = tmp_path / "vectors.npy"
        assert shell("embed", "-f", "npy", "-o", file, *TEXTS).out == ""
        np.testing.assert_allclose(np.load(file), encoder.embed(TEXTS).vectors, atol=1e-5)
        piped = shell("embed", "-f", "npy", *TEXTS).out_bytes
        np.testing.assert_array_equal(np.load(io.BytesIO(piped)), np.load(file))
        assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]

    def test_a_pipe_a_device_and_a_link_stay_what_they_are(self, shell, model, tmp_path):
        fifo, link, target = tmp_path / "fifo", tmp_path / "link", tmp_path / "target.jsonl"
        os.mkfifo(fifo)
        link.symlink_to(target)
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(fifo.read_bytes)
            assert shell("embed", "-o", fifo, "rain").code == 0
            assert json.loads(read.result(30))["index"] == 0
        assert fifo.is_fifo()
        assert shell("embed", "-o", "/dev/null", "rain").code == 0
        assert Path("/dev/null").is_char_device()
        assert shell("embed", "-o", link, "rain").code == 0
        assert link.is_symlink()
        assert json.loads(target.read_text())["index"] == 0
        full = shell("embed", "-o", "/dev/full", "rain")
        assert (full.code, full.err) == (1, "error: cannot write /dev/full: No space left on device\n")

    def test_a_failure_leaves_the_file_and_its_neighbours(self, shell, model, tmp_path):
        file, other = tmp_path / "vectors.jsonl", tmp_path / "vectors.jsonl.partial"
        file.write_text("old")
        other.write_text("mine")
        assert shell("embed", "-o", file, "-d", "1000", "rain").code == 2
        assert (file.read_text(), other.read_text()) == ("old", "mine")
        assert shell("embed", "-o", file, "rain").code == 0
        assert other.read_text() == "mine"
        assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, other.name]

    def test_more_than_a_chunk_keeps_its_order(self, shell, model, encoder, monkeypatch):
        monkeypatch.setattr("api.cli.embed.CHUNK", 4)
        texts = [f"text {n}" for n in range(10)]
        result = shell("embed", "-d", "8", stdin="\n".join(texts).encode())
        lines = [json.loads(line) for line in result.out.splitlines()]
        assert [line["index"] for line in lines] == list(range(10))
        expected = encoder.embed(texts, dimensions=8).vectors
        np.testing.assert_allclose([line["embedding"] for line in lines], expected, atol=1e-5)
        assert result.err == ""

    def test_texts_that_were_cut_are_remarked(self, shell, model, encoder):
        assert f"1 of 1 texts were truncated to {encoder.max_tokens}" in shell("embed", "word " * 3000).err

    def test_another_strategy(self, shell, model, other_encoder):
        vector = json.loads(shell("embed", "--strategy", "last_token", "rain").out)["embedding"]
        np.testing.assert_allclose(vector, other_encoder.embed(["rain"]).vectors[0], atol=1e-5)

    @pytest.mark.parametrize(
        ("arguments", "stdin", "code", "says"),
        [
            (["embed", "rain", ""], b"", 2, "text 2 is empty"),
            (["embed"], b"", 2, "standard input is empty"),
            (["embed"], b"rain\n\nsnow\n", 2, "line 2 of standard input is empty"),
            (["embed"], b"rain\nsn\xffow\n", 2, "line 2 of standard input is not UTF-8 at byte 2"),
            (["embed", "rain", "-d", "0"], b"", 2, "dimensions"),
            (["embed", "rain", "-d", "1000"], b"", 2, "1 to 32"),
            (["embed", "rain", "-d", "many"], b"", 2, "--dimensions"),
            (["embed", "rain", "--task", "both"], b"", 2, "--task"),
            (["embed", "rain", "--strategy", "men"], b"", 2, "did you mean 'mean'"),
            (["embed", "rain", "--modle", "x"], b"", 2, "--model"),
            (["embed", "rain", "--model", "/no/such/model"], b"", 3, "/no/such/model"),
            (["embed", "rain", "--device", "tpu"], b"", 2, "device"),
            (["embed", "rain", "-o", "/no/such/folder/x"], b"", 1, "No such file"),
            (["search", " "], b"", 2, "query 1 is empty"),
            (["search", "rain", "-c", "python-doc"], b"", 3, "did you mean 'python-docs'"),
            (["search", "rain", "-c", "../data"], b"", 2, "not a valid collection name"),
            (["search", "rain", "-k", "0"], b"", 2, "--top-k"),
            (["search", "rain", "-c", "damaged"], b"", 4, "dense.npy"),
            (["search", "rain", "-c", "strange", "--model", "MODEL"], b"", 4, "strategy"),
            (["index", "info", "nothing"], b"", 3, "nothing"),
            (["index", "verify", "nothing"], b"", 3, "nothing"),
            (["index", "build", "/no/such/source"], b"", 2, "does not exist"),
            (["index", "build", "-"], b"{}", 2, "--collection"),
            (["index", "build", "-", "-c", "new"], b"", 2, "no documents"),
            (["index", "build", "-", "-c", "new", *STOP], b'{"text": "a"}\n{"text": ""}\n', 2, "2"),
            (["index", "build", "-", "-c", "new", *STOP], b'{"text": "a"}\nnot json\n', 2, "line 2"),
            (
                ["index", "build", "-", "-c", "new", *STOP],
                b'{"text": "a"}\n{"text": 5}\n',
                2,
                "line 2: text must be a string",
            ),
            (["embed", "rain", "--model", "DAMAGED"], b"", 1, "cannot be loaded"),
            (["index", "build", "-", "-c", "new", "--text-field", "body"], b'{"text": "a"}\n', 2, "'body'"),
            (["index", "build", "-", "-c", "New Name"], b'{"text": "a"}\n', 2, "New Name"),
            (["index", "build", "-", "-c", "new", "--index", "bogus"], b'{"text": "a"}\n', 2, "bogus"),
            (["serve", "--port", "eighty"], b"", 2, "--port"),
            (["serve", "--port", "70000"], b"", 2, "--port cannot be 70000"),
            (["serve", "--host", "no.such.host.invalid"], b"", 2, "no.such.host.invalid"),
            (["nonsense"], b"", 2, "nonsense"),
        ],
    )
    def test_bad_input_is_refused_with_a_sentence_and_a_code(
        self, shell, model, here, tmp_path, arguments, stdin, code, says
    ):
        damaged = shutil.copytree(model, tmp_path / "damaged-model")
        weights = damaged / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        arguments = [{"MODEL": str(model), "DAMAGED": str(damaged)}.get(word, word) for word in arguments]
        result = shell(*arguments, stdin=stdin)
        assert (result.code, result.out) == (code, ""), result.err
        assert result.err.startswith("error: ")
        assert says in result.err
        as_json = (
            shell(*arguments, "--json", stdin=stdin) if arguments[0] in ("embed", "search", "index", "serve") else None
        )
        if as_json is not None:
            assert as_json.code == code
            assert sorted(as_json.error) == ["code", "message", "param", "request_id", "type"]
            assert says in as_json.error["message"]

    def test_formats_that_exclude_each_other(self, shell):
        result = shell("embed", "rain", "--json", "-f", "npy")
        assert result.code == 2
        assert "mutually exclusive" in result.error["message"]

    def test_a_model_folder_without_weights_is_refused(self, shell, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        result = shell("embed", "rain", "--model", tmp_path)
        assert result.code == 1
        assert "no weights" in result.err


class TestIndex:
    def test_a_folder_becomes_a_collection(self, shell, model, notes):
        built = shell("index", "build", notes)
        assert built.code == 0, built.err
        assert built.out.startswith("built my-notes: 2 documents")
        assert "embedding" in built.err
        assert "100%  2/2" in built.err
        listed = shell("index", "list", "--json").json["collections"]
        assert [(row["name"], row["count"], row["error"]) for row in listed] == [("my-notes", 2, None)]
        assert shell("index", "list").out.startswith("my-notes")
        info = shell("index", "info", "my-notes", "--json").json
        assert (info["count"], info["encoder"]) == (2, "llama")
        assert "fingerprint" in shell("index", "info", "my-notes").out
        assert shell("index", "verify").code == 0
        found = shell("search", "-c", "my-notes", "The cat sleeps in the garden.", "-k", "1")
        assert found.code == 0
        assert "cat.txt" in found.out

    def test_records_with_fields_of_other_names(self, shell, model, tmp_path):
        file = tmp_path / "goods.csv"
        file.write_text("sku,name,description,price\n7,Lamp,It gives light,12\n8,Chair,For sitting,30\n")
        options = ["--id-field", "sku", "--text-field", "description", "--title-field", "name"]
        built = shell("index", "build", file, *options, "--metadata-field", "price", "--index", "hnsw", "--json")
        assert built.code == 0, built.err
        assert (built.json["name"], built.json["count"]) == ("goods", 2)
        hits = shell("search", "-c", "goods", "--json", "Lamp It gives light").json["results"][0]["hits"]
        assert hits[0]["id"] == "7"
        assert hits[0]["metadata"] == {"title": "Lamp", "price": "12"}

    def test_standard_input_becomes_a_collection(self, shell, model):
        records = b"".join(json.dumps({"_id": f"d{n}", "text": f"text {n}"}).encode() + b"\n" for n in range(5))
        assert shell("index", "build", "-", "-c", "piped", stdin=records).code == 0
        assert shell("index", "info", "piped", "--json").json["count"] == 5

    def test_a_failed_build_leaves_the_old_collection(self, shell, model, notes):
        shell("index", "build", notes)
        before = shell("index", "info", "my-notes", "--json").json
        records = b'{"text": "a"}\n{"txt": "b"}\n'
        failed = shell("index", "build", "-", "-c", "my-notes", *STOP, stdin=records)
        assert failed.code == 2
        assert shell("index", "info", "my-notes", "--json").json == before

    def test_damage_is_found(self, shell, here):
        result = shell("index", "verify")
        assert result.code == 4
        assert "FAIL  damaged/" in result.out
        as_json = shell("index", "verify", "--json")
        assert (as_json.code, as_json.json["ok"], as_json.err) == (4, False, "")
        assert shell("index", "verify", "python-docs").code == 0

    def test_info_reads_the_manifest_and_compares_sizes(self, shell, model, notes, tmp_path, monkeypatch):
        shell("index", "build", notes)
        monkeypatch.setattr("indexing.Collection.open", None)  # nothing is loaded
        before = shell("index", "info", "my-notes", "--json").json
        keys = {"name", "count", "dim", "metric", "index", "encoder", "fingerprint", "created", "version", "spec"}
        assert set(before) == keys | {"truncated", "bytes", "path"}
        file = next(tmp_path.glob("data/collections/my-notes/segments/*/dense.npy"))
        assert before["bytes"] == sum(other.stat().st_size for other in file.parent.rglob("*") if other.is_file())
        for damage, says in ((lambda: file.write_bytes(b"short"), "has 5 bytes"), (file.unlink, "is missing")):
            damage()
            result = shell("index", "info", "my-notes", "--json")
            assert result.code == 4
            assert f"dense.npy {says}" in result.error["message"]
            assert result.error["param"] == "collection"

    def test_a_build_says_how_many_documents_were_cut(self, shell, model, tmp_path):
        source = tmp_path / "long.jsonl"
        source.write_text(json.dumps({"text": "short"}) + "\n" + json.dumps({"text": "long " * 20_000}) + "\n")
        result = shell("index", "build", source, "--json")
        assert result.json["truncated"] == 1
        assert "1 of 2 documents were truncated to" in result.err
        assert "--passage-tokens N" in result.err

    def test_there_may_be_no_collections(self, shell):
        assert shell("index", "list", "--json").json["collections"] == []
        assert "index build" in shell("index", "list").err
        assert shell("index", "verify").code == 0

    @pytest.mark.parametrize(
        ("source", "name"),
        [
            ("a/b/My Notes", "my-notes"),
            ("x.jsonl.gz", "x"),
            ("Réports (2024).csv", "r-ports-2024"),
            ("corpus.v2.parquet", "corpus-v2"),
        ],
    )
    def test_a_collection_takes_its_name_from_the_source(self, source, name):
        assert name_from(source) == name

    def test_a_source_without_letters_needs_a_name(self):
        with pytest.raises(InputError, match="--collection"):
            name_from("東京.csv")


class TestSearch:
    def test_the_encoder_of_the_collection_is_found(self, shell, here):
        """No --model: the manifest tells which encoder built it."""
        result = shell("search", DOCUMENTS[0].content, "-k", "1")
        assert result.code == 0, result.err
        assert "numpy.stack" in result.out
        assert shell("search", DOCUMENTS[0].content, "-c", "strange", "-k", "1").out.count("numpy.stack")

    def test_json_is_the_answer_of_the_api(self, shell, here, client):
        queries = [document.content for document in DOCUMENTS[:3]]
        answer = shell("search", "--json", "-k", "4", stdin="\n".join(queries).encode()).json
        over_http = client.post("/search", json={"queries": queries, "top_k": 4}).json()
        assert sorted(answer) == sorted(over_http)
        for one, other in zip(answer["results"], over_http["results"], strict=True):
            assert [hit["id"] for hit in one["hits"]] == [hit["id"] for hit in other["hits"]]

    def test_a_model_that_has_moved_is_asked_for(self, shell, tiny_models, tmp_path, monkeypatch):
        model = tmp_path / "moving"
        model.mkdir()
        for file in Path(tiny_models["llama"]).iterdir():
            (model / file.name).write_bytes(file.read_bytes())
        build_collection(DOCUMENTS, Encoder.load(model, device="cpu"), collection_path(tmp_path / "data", "moved"))
        model.rename(tmp_path / "elsewhere")
        lost = shell("search", "-c", "moved", "rain")
        assert lost.code == 3
        assert "--model" in lost.err
        assert shell("search", "-c", "moved", "rain", "--model", tmp_path / "elsewhere").code == 0
        wrong = shell("search", "-c", "moved", "rain", "--model", tiny_models["qwen2"])
        assert wrong.code == 4


class TestDoctor:
    def test_all_is_well(self, shell, model):
        result = shell("doctor", "--json")
        assert (result.code, result.json["ok"]) == (0, True)
        found = {check["name"]: check for check in result.json["checks"]}
        assert {"python", "torch", "faiss", "settings", "data folder", "disk", "model", "embedding"} <= set(found)
        assert found["collections"]["verdict"] == "warn"
        assert "index build" in found["collections"]["remedy"]

    def test_each_trouble_has_a_remedy(self, shell, here, model, monkeypatch):
        monkeypatch.setenv("EMBEDSERVE_PROT", "1")
        result = shell("doctor")
        assert result.code == 1
        assert "fail    damaged" in result.out
        assert "warn    strange" in result.out
        assert "ok      python-docs" in result.out
        assert "did you mean 'EMBEDSERVE_PORT'?" in result.out
        assert "→" in result.out

    def test_a_model_that_fails_in_a_new_way_is_in_the_log(self, shell, monkeypatch, caplog):
        def fail(*_, **__):
            raise RuntimeError("a bug")

        monkeypatch.setattr("api.cli.doctor.load_encoder", fail)
        caplog.set_level("INFO")
        result = shell("doctor", "--debug")
        assert result.code == 1
        assert "run embedserve doctor --debug" in result.out
        assert "Traceback" in caplog.text
        assert 'raise RuntimeError("a bug")' in caplog.text

    def test_a_missing_model_and_a_folder_that_is_none(self, shell, tmp_path):
        (tmp_path / "file").write_text("")
        result = shell("doctor", "--model", tmp_path / "none", "--data-dir", tmp_path / "file" / "x", "--json")
        verdicts = {check["name"]: check["verdict"] for check in result.json["checks"]}
        assert result.code == 1
        assert (verdicts["model"], verdicts["data folder"]) == ("fail", "fail")


class TestShell:
    @pytest.mark.parametrize(
        "command", [[], ["embed"], ["search"], ["serve"], ["doctor"], ["index"], ["index", "build"]]
    )
    def test_help_teaches(self, shell, command):
        result = shell(*command, "--help")
        assert (result.code, result.err) == (0, "")
        assert "embedserve " in result.out
        assert ("Examples:" in result.out) == (command not in ([], ["index"]))

    def test_no_command_shows_the_help(self, shell):
        result = shell()
        assert result.code == 2
        assert "First steps" in result.out

    def test_the_version(self, shell):
        assert shell("--version").out.startswith("embedserve 0.")

    def test_bad_settings_are_said(self, shell, monkeypatch):
        monkeypatch.setenv("EMBEDSERVE_PORT", "http")
        result = shell("embed", "rain")
        assert result.code == 2
        assert "EMBEDSERVE_PORT" in result.err

    def test_a_bug_is_one_sentence_and_a_traceback_only_with_debug(self, shell, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("a bug")

        monkeypatch.setattr("api.cli.embed.load_encoder", fail)
        result = shell("embed", "rain")
        assert result.code == 1
        assert result.err.startswith("error: RuntimeError: a bug; run the command with --debug")
        assert shell("embed", "rain", "--debug").code == 1

    def test_an_interruption_is_130(self, shell, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("api.cli.embed.load_encoder", interrupt)
        result = shell("embed", "rain")
        assert result.code == 130
        assert result.err.strip() == "interrupted"

    def test_importing_the_command_line_loads_no_model_library(self):
        heavy = ("torch", "faiss", "transformers")
        code = f"import sys, api.cli.main, api.app; print([m for m in {heavy} if m in sys.modules])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

    @pytest.mark.parametrize(("given", "policies"), [({}, {"PASSIVE"}), ({"OMP_WAIT_POLICY": "ACTIVE"}, {"ACTIVE"})])
    def test_waiting_threads_sleep_unless_the_user_says_otherwise(self, given, policies):
        """The OpenMP libraries themselves tell what they go by: it was set before they were loaded."""
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment |= {"OMP_DISPLAY_ENV": "TRUE"} | given
        done = subprocess.run(
            [sys.executable, "-c", "import api.cli.main, torch, faiss"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert set(re.findall(r"OMP_WAIT_POLICY ?= ?'(\w+)'", done.stderr)) == policies

    @pytest.mark.parametrize(
        ("command", "codes"),
        [
            ("seq 1 3000 | CLI embed | head -1", "0 0 0"),
            ("CLI index list --json | true", "0 0"),
            ("(sleep 0.2; CLI index list) | true", "0 0"),
            ("CLI --help | true", "0 0"),
            ("CLI doctor --model /no/such/model | true", "0 0"),
        ],
    )
    def test_a_reader_who_has_seen_enough_is_no_error(self, model, here, command, codes):
        done = in_bash(f"{command}; echo ${{PIPESTATUS[*]}} >&2")
        assert done.stderr.strip() == codes
        if "head" in command:
            assert json.loads(done.stdout)["index"] == 0

    @pytest.mark.parametrize(
        ("redirection", "rest"), [("2>&-", ""), ("2>/dev/full", ""), ("2>&1 >/dev/null", "| true")]
    )
    def test_an_error_that_nobody_reads_keeps_its_code(self, model, redirection, rest):
        done = in_bash(f"exec 3>&1; (sleep 0.2; CLI index info nothing {redirection}; echo $? >&3) {rest}")
        assert done.stdout.strip().splitlines()[-1] == "3"

    def test_a_build_whose_progress_nobody_reads_goes_on(self, model, notes, tmp_path):
        done = in_bash(f"(sleep 0.2; CLI index build '{notes}' 2>&4; echo $? >&3) 3>&1 4> >(true)")
        assert done.stdout.strip().splitlines()[-1] == "0"
        assert done.stdout.startswith("built my-notes")

    @pytest.mark.parametrize("command", ["index list", "index list --json", "--version"])
    @pytest.mark.parametrize(
        ("redirection", "says"), [(">&-", "standard output is closed"), (">/dev/full", "No space left on device")]
    )
    def test_a_result_that_cannot_be_written_is_one_sentence(self, model, here, command, redirection, says):
        done = in_bash(f"CLI {command} {redirection}")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith('{"error":' if "--json" in command else "error: ")
        assert says in line

    def test_a_hit_is_headed_by_its_signature_where_there_is_one(self):
        def head(title, width=80, **metadata):
            return headline(Hit("id", 0.5, "text", title, metadata), width)

        assert head("a.b", signature="a.b(x,\n  y)") == "a.b(x, y)"
        assert head("a.b", signature="a.b(first, second)", width=12) == "a.b(first, …"
        assert head("a.b", signature="a.b(x)", width=2) == "a.b …"
        assert head("") == "id"
        assert [head("a.b", signature=other) for other in ("", "Yours sincerely", 7, None)] == ["a.b"] * 4

    def test_a_title_cannot_take_command_of_a_terminal(self, monkeypatch):
        text = "\x1b]0;owned\x07 \x9b31m tab\tline\n東京"

        class Terminal(io.StringIO):
            def isatty(self):
                return True

        assert for_stream(text, io.StringIO()) == text
        shown = for_stream(text, Terminal())
        assert shown == "\ufffd]0;owned\ufffd \ufffd31m tab\tline\n東京"
        monkeypatch.setattr(sys, "stdout", Terminal())
        out(text)
        assert sys.stdout.getvalue() == shown + "\n"

    def test_the_meter_tells_rate_and_time_left(self, capsys, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("api.cli.progress.time.monotonic", lambda: now[0])
        meter = Meter("embedding")
        meter.update("embedding", 0, 1000)
        for step in range(1, 11):
            now[0] += 1
            meter.update("embedding", step * 50, 1000)
        meter.close()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3
        assert lines[0].endswith("25%  250/1,000  50/s  ETA 0:15")
        patient = Meter("embedding", patience_s=2.0)
        now[0] += 1
        patient.update("embedding", 5, None)
        patient.close()
        assert capsys.readouterr().err == ""
        assert clock(3725) == "1:02:05"


def test_lines_of_a_file_on_standard_input_are_counted_and_still_read(tmp_path, monkeypatch):
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\nthree")
    with path.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert stdin_lines() == 3
        assert list(arguments_or_lines([], "text")) == ["one", "two", "three"]
    assert stdin_lines() is None  # closed
    monkeypatch.setattr("sys.stdin", None)
    assert stdin_lines() is None
