"""Training pairs: formats, error locations, dev split, mined negatives and hyperparameters."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedserve import Encoder, InputError, NotFoundError, SpecError
from embedserve.spec import EncoderSpec
from embedserve.strategies import STRATEGIES, is_trained, with_defaults
from embedserve.training.hyperparameters import RECIPES, TrainSettings, check_settings, settings_for
from embedserve.training.pairs import MAX_DEV, Fields, TrainingPair, mine_negatives, read_pairs, read_texts, split_dev
from embedserve.training.pseudo_queries import PART_WORDS, keyword_queries, part_queries, pseudo_pairs

ROWS = [
    {"query": "who painted it?", "pos": "A woman painted it.", "negatives": ["A dog ate it.", "It rains."]},
    {"query": "where is it?", "pos": "It is in the garden.", "negatives": ["It is late.", "Nobody knows."]},
]
PAIRS = [TrainingPair(row["query"], row["pos"], tuple(row["negatives"])) for row in ROWS]
WITHOUT = [TrainingPair(pair.query, pair.positive) for pair in PAIRS]


DISTILLED = {"loss": "distillation", "teacher": "nano"}


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


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_negatives_in_numbered_columns(tmp_path, form):
    numbers = [*range(1, 12)]
    rows = [
        {"anchor": f"q{n}", "positive": f"p{n}"} | {f"negative_{i}": f"not {n}, but {i}" for i in reversed(numbers)}
        for n in range(3)
    ]
    path = tmp_path / f"pairs.{form}"
    if form == "jsonl":
        write_lines(path, rows)
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    expected = [TrainingPair(f"q{n}", f"p{n}", tuple(f"not {n}, but {i}" for i in numbers)) for n in range(3)]
    assert read_pairs([str(path)]) == expected


def test_empty_numbered_negatives_are_skipped_and_others_must_be_texts(tmp_path):
    rows = [{"query": "a", "pos": "b", "negative_1": None, "negative_2": "c", "negative_3": ["d", "e"]}]
    assert read_pairs([write_lines(tmp_path / "pairs.jsonl", rows)]) == [TrainingPair("a", "b", ("c", "d", "e"))]
    rows = [{"query": "a", "pos": "b", "negative": "c", "negative_1": "d", "bad_1": "e"}]
    source = write_lines(tmp_path / "pairs.jsonl", rows)
    assert read_pairs([source]) == [TrainingPair("a", "b", ("c", "d"))]
    assert read_pairs([source], Fields(negatives=("bad",))) == [TrainingPair("a", "b", ("e",))]
    with pytest.raises(InputError, match="line 1: negative_1 must be"):
        read_pairs([write_lines(tmp_path / "pairs.jsonl", [{"query": "a", "pos": "b", "negative_1": 5}])])


HEADER = "query-id\tcorpus-id\tscore\n"
CORPUS = [{"_id": "a", "title": "A", "text": "one"}, {"_id": "b", "text": "two"}, {"_id": "c", "text": ""}]


def write_beir(folder, qrels, corpus=CORPUS, queries=({"_id": "1", "text": "first"},)):
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir(exist_ok=True)
    for split, text in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text(text)
    return str(folder)


@pytest.mark.parametrize("header", [HEADER, ""])
def test_a_beir_folder(tmp_path, header):
    source = write_beir(tmp_path, {"train": header + "1\ta\t1\n1\tb\t0\n\n1\tc\t1\n", "test": header + "1\tb\t2\n"})
    assert read_pairs([source]) == [TrainingPair("first", "A one")]
    assert read_pairs([f"{source}:test"]) == [TrainingPair("first", "two")]


def test_judgements_of_another_split_are_read_only_if_requested(tmp_path):
    source = write_beir(tmp_path, {"dev": HEADER + "1\ta\t1\n", "test": HEADER + "1\tb\t1\n"})
    with pytest.raises(InputError, match=r"no qrels/train.tsv") as caught:
        read_pairs([source])
    assert f"{source}:dev or {source}:test" in str(caught.value)
    with pytest.raises(InputError, match=r"no qrels/dex.tsv"):
        read_pairs([f"{source}:dex"])
    assert read_pairs([f"{source}:test"]) == [TrainingPair("first", "two")]


@pytest.mark.parametrize(
    ("qrels", "where"),
    [
        ("1\ta\tgood\n", "train.tsv, line 1: the score must be a number, got 'good'"),
        (HEADER + "1\ta\tnan\n", "train.tsv, line 2: the score must be a number"),
        (HEADER + "1\ta\t1\n1\ta\n", "train.tsv, line 3: 2 values"),
        (HEADER + "1 a 1\n", "train.tsv, line 2: 1 values"),
        ("1\t0\ta\t1\n", "train.tsv, line 1: 4 values"),
        (HEADER + "1\tz\t1\n", "train.tsv, line 2: document z does not exist"),
        (HEADER + "2\ta\t1\n", "train.tsv, line 2: query 2 does not exist"),
    ],
)
def test_a_bad_line_of_judgements_is_named(tmp_path, qrels, where):
    with pytest.raises(InputError) as caught:
        read_pairs([write_beir(tmp_path, {"train": qrels})])
    assert where in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"corpus": [CORPUS[0], {"id": "b", "text": "two"}]}, "corpus.jsonl, line 2 has no _id"),
        ({"corpus": [CORPUS[0], {"_id": "b", "title": "two"}]}, "corpus.jsonl, line 2 has no text"),
        ({"queries": [{"_id": "1", "query": "first"}]}, "queries.jsonl, line 1 has no text"),
    ],
)
def test_a_line_of_a_beir_folder_without_id_or_text_is_named(tmp_path, changed, where):
    with pytest.raises(InputError) as caught:
        read_pairs([write_beir(tmp_path, {"train": HEADER + "1\ta\t1\n"}, **changed)])
    assert where in str(caught.value)
    assert "its fields: " in str(caught.value)


def test_a_beir_folder_without_a_corpus_is_rejected(tmp_path):
    source = write_beir(tmp_path, {"train": HEADER})
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(InputError, match="which needs corpus"):
        read_pairs([source])


def test_texts_alone(tmp_path):
    mixed = write_lines(tmp_path / "mixed.jsonl", [{"text": "one"}, {"text": "two"}, {"text": "one"}, *ROWS])
    assert read_texts([mixed]) == ["one", "two", *(text for pair in PAIRS for text in (pair.query, pair.positive))]
    beir = tmp_path / "beir"
    beir.mkdir()
    write_lines(beir / "corpus.jsonl", CORPUS)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("a note\n")
    assert read_texts([str(beir), str(tmp_path / "notes")]) == ["A one", "two", "a note"]
    rows = [{"text": f"t{n}"} for n in range(50)]
    assert len(read_texts([write_lines(tmp_path / "many.jsonl", rows)], limit=7)) == 7
    with pytest.raises(InputError, match="line 1 has none of the fields text, query"):
        read_texts([write_lines(tmp_path / "bad.jsonl", [{"body": "x"}])])
    with pytest.raises(InputError, match="text must be a text"):
        read_texts([write_lines(tmp_path / "bad.jsonl", [{"text": " "}])])


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


def test_missing_and_unsupported_sources_are_rejected(tmp_path):
    with pytest.raises(NotFoundError, match="no file or folder"):
        read_pairs([str(tmp_path / "none.jsonl")])
    (tmp_path / "pairs.doc").write_text("x")
    with pytest.raises(InputError, match="jsonl"):
        read_pairs([str(tmp_path / "pairs.doc")])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="contains no pairs"):
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


def test_dev_pairs_beyond_the_maximum_are_trained_on():
    pairs = [TrainingPair(f"q{n}", f"p{n // 3}") for n in range(15_000)]
    learn, dev = split_dev(pairs, 0.2)
    assert MAX_DEV - 3 < len(dev) <= MAX_DEV
    assert len(learn) + len(dev) == len(pairs)
    assert {*learn, *dev} == {*pairs}
    assert not {pair.positive for pair in learn} & {pair.positive for pair in dev}


def test_mined_negatives_are_similar_but_not_answers(tiny_llama):
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


def test_pseudo_queries_one_per_kind_and_none_for_short_passages():
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
        ({"matryoshka": [16, 0]}, "matryoshka must be whole numbers of at least 1, got 0"),
        ({"matryoshka": 16}, "matryoshka must be a list"),
        ({"pseudo_queries": "keywords"}, "pseudo_queries must be a list, such as ['keywords']"),
        ({**DISTILLED, "matryoshka": [16]}, "matryoshka needs loss=contrastive"),
        ({**DISTILLED, "mini_batch_size": 8}, "mini_batch_size needs loss=contrastive"),
        ({**DISTILLED, "symmetric": True}, "symmetric needs loss=contrastive"),
        ({"teacher": "nano"}, "no effect without loss=distillation or negatives"),
        ({"tune": "all", "lora_rank": 8}, "lora_rank needs tune=lora"),
        ({"steps": 3, "epochs": 2}, "steps and epochs cannot be combined"),
    ],
)
def test_invalid_settings_are_rejected(given, word):
    with pytest.raises(SpecError) as caught:
        settings_for("mean", given)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("strategy", "given", "word"),
    [
        ("colbert", {"matryoshka": [16]}, "matryoshka needs one vector per text"),
        ("colbert", {"symmetric": True}, "symmetric needs one vector per text"),
        ("whitening", {"tune": "head"}, "tune has no effect"),
        ("whitening", {"max_tokens": 256}, "max_tokens has no effect"),
        ("whitening", {"lr": 1e-3}, "lr has no effect"),
        ("glott", {}, "did you mean 'glot'"),
    ],
)
def test_settings_without_effect_on_a_strategy_are_rejected(strategy, given, word):
    with pytest.raises(SpecError) as caught:
        settings_for(strategy, given)
    assert word in str(caught.value)


def test_distillation_drops_contrastive_settings_of_the_recipe():
    assert settings_for("glot", {}).symmetric
    settings = settings_for("glot", DISTILLED)
    assert not settings.symmetric
    assert settings.lr == settings_for("glot", {}).lr
    with pytest.raises(SpecError, match="batch_size has no effect"):
        check_settings("whitening", TrainSettings(batch_size=32))
    check_settings("whitening", TrainSettings(limit=50, seed=1))


def test_settings_come_from_the_recipe_and_the_caller():
    assert settings_for("mean", {}) == TrainSettings(tune="lora", lr=settings_for("mean", {}).lr)
    assert settings_for("mean", {"steps": 5, "lr": None}).steps == 5


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    assert path.stem in STRATEGIES
    for published in (False, True) if "[paper" in path.read_text() else (False,):
        settings = settings_for(path.stem, {}, published=published)
        with_defaults(EncoderSpec(path.stem, options=settings.options))


@pytest.mark.parametrize("strategy", ["weighted_layers", "adapter", "echo"])
def test_recipes_without_published_values_are_rejected(strategy):
    with pytest.raises(SpecError, match=f"no values are published for {strategy}") as caught:
        settings_for(strategy, {}, published=True)
    assert caught.value.field == "recipe"


def test_every_trained_strategy_has_a_recipe():
    assert {name for name in STRATEGIES if is_trained(name)} <= {path.stem for path in RECIPES.glob("*.toml")}


def test_epochs_override_the_steps_of_the_recipe():
    assert settings_for("causal2vec", {}).steps == 200
    given = settings_for("causal2vec", {"epochs": 3})
    assert (given.steps, given.epochs) == (None, 3)
