"""Training pairs: read from every format, complaints that name the line, dev split, mined negatives."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedserve import Encoder, InputError, NotFoundError, SpecError
from embedserve.spec import EncoderSpec
from embedserve.strategies import STRATEGIES, is_trained, with_defaults
from embedserve.training.pairs import Fields, TrainingPair, mine_negatives, read_pairs, split_dev
from embedserve.training.pseudo_queries import PART_WORDS, keyword_queries, part_queries, pseudo_pairs
from embedserve.training.settings import RECIPES, TrainSettings, settings_for

ROWS = [
    {"query": "who painted it?", "pos": "A woman painted it.", "negatives": ["A dog ate it.", "It rains."]},
    {"query": "where is it?", "pos": "It is in the garden.", "negatives": ["It is late.", "Nobody knows."]},
]
PAIRS = [TrainingPair(row["query"], row["pos"], tuple(row["negatives"])) for row in ROWS]
WITHOUT = [TrainingPair(pair.query, pair.positive) for pair in PAIRS]


def write_lines(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_json_lines(tmp_path, name):
    assert read_pairs([write_lines(tmp_path / name, ROWS)]) == PAIRS


def test_parquet_and_csv(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "pairs.parquet")
    assert read_pairs([str(tmp_path / "pairs.parquet")]) == PAIRS
    lines = ["question,answer", *(f'"{row["query"]}","{row["pos"]}"' for row in ROWS)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    assert read_pairs([str(tmp_path / "pairs.csv")], Fields(positive=("answer",))) == WITHOUT


def test_a_beir_folder(tmp_path):
    write_lines(tmp_path / "corpus.jsonl", [{"_id": "a", "title": "A", "text": "one"}, {"_id": "b", "text": "two"}])
    write_lines(tmp_path / "queries.jsonl", [{"_id": "1", "text": "first"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n1\tb\t0\n")
    assert read_pairs([str(tmp_path)]) == [TrainingPair("first", "A one")]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('{"query": "a"}', "positive, pos"),
        ('{"query": "", "pos": "b"}', "query must be a text"),
        ('{"query": "a", "pos": 5}', "pos must be a text"),
        ('{"query": "a", "pos": "b", "neg": [1]}', "neg must be"),
        ("[1]", "object"),
        ("{", "not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, word):
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "pos": "b"}\n' + line + "\n")
    with pytest.raises(InputError, match="line 2") as caught:
        read_pairs([str(tmp_path / "pairs.jsonl")])
    assert word in str(caught.value)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(NotFoundError, match="no file or folder"):
        read_pairs([str(tmp_path / "none.jsonl")])
    (tmp_path / "pairs.doc").write_text("x")
    with pytest.raises(InputError, match="jsonl"):
        read_pairs([str(tmp_path / "pairs.doc")])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no pairs"):
        read_pairs([str(tmp_path / "empty.jsonl")])
    with pytest.raises(InputError, match="BEIR"):
        read_pairs([str(tmp_path)])


def test_a_limit_draws_the_same_pairs_each_time(tmp_path):
    rows = [{"query": f"q{n}", "pos": f"p{n}"} for n in range(50)]
    source = write_lines(tmp_path / "pairs.jsonl", rows)
    one, two, other = (read_pairs([source], limit=10, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert len(one) == 10
    assert one != other


def test_a_positive_is_never_on_both_sides():
    pairs = [TrainingPair(f"q{n}", f"p{n % 40}") for n in range(400)]
    learn, dev = split_dev(pairs, 0.3)
    assert learn
    assert dev
    assert len(learn) + len(dev) == 400
    assert not {pair.positive for pair in learn} & {pair.positive for pair in dev}


def test_mined_negatives_are_near_but_no_answers(tiny_llama):
    encoder = Encoder.load(tiny_llama, device="cpu")
    words = ["dog", "cat", "bridge", "garden", "storm", "engine", "judge", "map"]
    pairs = [TrainingPair(f"the {word}", f"a {word} sleeps") for word in words]
    pairs += [TrainingPair("the dog", "two dogs sleep")]
    found = mine_negatives(pairs, encoder, 2, margin=2.0)
    assert found
    queries, texts = (
        encoder.embed([getattr(p, n) for p in pairs], t).vectors
        for n, t in (("query", "query"), ("positive", "document"))
    )
    for pair in found:
        assert len(set(pair.negatives)) == 2
        answers = {other.positive for other in pairs if other.query == pair.query}
        assert not answers & set(pair.negatives)
        row = texts @ queries[[p.query for p in pairs].index(pair.query)]
        ranked = [pairs[n].positive for n in np.argsort(-row)]
        assert [text for text in ranked if text not in answers][:2] == list(pair.negatives)


def test_keywords_are_the_rarest_and_parts_are_runs_of_words():
    passages = [f"the common words and rare{n} unusual{n} special{n} curious{n} here" for n in range(5)]
    for number, query in enumerate(keyword_queries(passages)):
        assert set(query.split()) <= set(passages[number].split()) - {"the", "common", "words", "and", "here"}
    long = " ".join(f"w{n}" for n in range(40))
    (part,) = part_queries([long])
    assert part in long
    assert len(part.split()) == PART_WORDS


def test_passages_ask_for_themselves_once_for_each_kind_and_short_ones_never():
    texts = [f"{' '.join(f'word{letter}{n}' for letter in 'abcdefghijklmnopqr')} end" for n in range(6)]
    pairs = [TrainingPair(f"q{n}", text) for n, text in enumerate([*texts, *texts, "a cat", "1 2 3 " * 20])]
    found = pseudo_pairs(pairs, ("keywords", "part"))
    assert sorted(pair.positive for pair in found) == sorted([*texts, *texts, "1 2 3 " * 20])  # digits are no keywords
    assert all(set(pair.query.split()) <= set(pair.positive.split()) for pair in found)
    assert found == pseudo_pairs(pairs, ("keywords", "part"))
    assert found != pseudo_pairs(pairs, ("keywords", "part"), seed=1)
    assert pseudo_pairs(pairs, ()) == []


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"lr": -1}, "lr must be at least"),
        ({"tune": "some"}, "head, lora, all"),
        ({"loss": "distillation"}, "teacher"),
        ({"batch_sise": 5}, "did you mean 'batch_size'"),
        ({"batch_size": 1}, "batch_size"),
        ({"pseudo_queries": ["keyword"]}, "did you mean 'keywords'"),
        ({"mini_batch_size": 8, "matryoshka": [16]}, "matryoshka"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, word):
    with pytest.raises(SpecError) as caught:
        settings_for("mean", given)
    assert word in str(caught.value)


def test_settings_come_from_the_recipe_and_the_caller():
    assert settings_for("mean", {}) == TrainSettings(tune="lora", lr=settings_for("mean", {}).lr)
    assert settings_for("mean", {"steps": 5, "lr": None}).steps == 5


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    assert path.stem in STRATEGIES
    for published in (False, True):
        settings = settings_for(path.stem, {}, published=published)
        with_defaults(EncoderSpec(path.stem, options=settings.options))


def test_every_trained_strategy_has_a_recipe():
    assert {name for name in STRATEGIES if is_trained(name)} <= {path.stem for path in RECIPES.glob("*.toml")}
