"""What a search can be asked beyond its best hits, against the plain definitions."""

import numpy as np
import pytest

from embedserve.errors import InputError
from indexing import Collection, Document, Options, build_collection
from indexing.collections.catalog import collection_path
from indexing.query.cursors import decode_cursor, encode_cursor
from indexing.query.diversity import GroupBy, Mmr, first_of_groups, mmr_order
from indexing.query.filters import compile_filter
from indexing.segments.fields import BM25, WORDS, field_of
from tests.indexing.bag import BagEncoder, direction

ENCODER = BagEncoder()
WORDS_OF = ["red", "green", "blue", "cat", "dog", "bird", "sun", "moon", "star"]


def document(number, tag="old"):
    rng = np.random.default_rng(number)
    text = " ".join(rng.choice(WORDS_OF, size=6))
    return Document(f"{tag}-{number}", text, metadata={"n": number, "of": {"part": number % 5}})


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A segment of 60 documents with every kind of field."""
    path = collection_path(tmp_path_factory.mktemp("data"), "docs")
    fields = {
        "dense": field_of(ENCODER, index="exact"),
        "multi": field_of(ENCODER, "multi", index="exact"),
        "sparse": field_of(ENCODER, "sparse", dim=1000),
        BM25: WORDS,
    }
    build_collection([document(n) for n in range(60)], ENCODER, path, fields=fields)
    return path


@pytest.fixture(scope="module")
def collection(directory):
    """The segment, and 20 documents in the log."""
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.upsert([document(n) for n in range(60, 80)])
        yield collection


def asked(text="red cat sun"):
    made = ENCODER.encode([text])
    return {"dense": made.dense.vectors, "multi": made.multi, "sparse": made.sparse, BM25: [text]}


def find(collection, *names, k=10, also=(), text="red cat sun", **options):
    queries = asked(text)
    wanted = {name: queries[name] for name in [*names, *also]}
    return collection.find(collection.plan(Options(k, **options), names), wanted)[0]


@pytest.mark.parametrize(
    ("names", "options", "stages"),
    [
        (["dense"], {}, {"retrieve", "fetch"}),
        (["dense"], {"group_by": GroupBy("of.part", 1)}, {"retrieve", "fetch"}),
        (["dense"], {"mmr": Mmr(0.5, "dense")}, {"retrieve", "rerank", "fetch"}),
        (["dense", BM25], {"rerank": "multi"}, {"retrieve", "fuse", "rerank", "fetch"}),
    ],
)
def test_find_reports_the_seconds_of_each_stage(collection, names, options, stages):
    timings_s = {}
    plan = collection.plan(Options(5, **options), names)
    hits = collection.find(plan, asked(), timings_s)
    assert timings_s.keys() == stages
    assert all(seconds > 0 for seconds in timings_s.values())
    assert hits == collection.find(plan, asked())


def ids(hits):
    return [hit.id for hit in hits]


def test_without_more_it_finds_what_search_finds(collection):
    for mode in ("dense", "multi", "sparse", BM25):
        assert find(collection, mode) == collection.search(["red cat sun"], 10, mode=mode)[0]
    hybrid = find(collection, "dense", BM25, fusion="weighted", weights={"dense": 2})
    vectors = {name: asked()[name] for name in ("dense", BM25)}
    assert hybrid == collection.search_vectors(vectors, 10, fusion="weighted", weights={"dense": 2})[0]


def test_the_constant_of_the_fusion_by_ranks_is_the_callers(collection):
    ranks = {name: {hit.id: n for n, hit in enumerate(find(collection, name, k=80), 1)} for name in ("dense", BM25)}
    for k in (0, 5):
        for hit in find(collection, "dense", BM25, rrf_k=k):
            expected = sum(1 / (k + ranks[name][hit.id]) for name in ranks if hit.id in ranks[name])
            assert hit.score == pytest.approx(expected)


def test_a_threshold_cuts_what_scores_less(collection):
    every = find(collection, "dense", k=80)
    limit = every[7].score
    assert find(collection, "dense", k=80, score_threshold=limit) == [hit for hit in every if hit.score >= limit]
    assert find(collection, "dense", score_threshold=2.0) == []


@pytest.mark.parametrize(("path", "size"), [("of.part", 1), ("of.part", 3), ("id", 1), ("missing", 2)])
def test_groups_have_so_many_documents_and_k_counts_groups(collection, path, size):
    every = find(collection, "dense", k=80)
    groups, expected = {}, []
    for hit in every:
        key = {"of.part": hit.metadata["of"]["part"], "id": hit.id, "missing": hit.id}[path]
        if key in groups or len(groups) < 4:
            groups[key] = groups.get(key, 0) + 1
            if groups[key] <= size:
                expected.append(hit.id)
    found = find(collection, "dense", k=4, group_by=GroupBy(path, size))
    assert ids(found) == expected
    if path == "of.part":
        assert [hit.group for hit in found] == [hit.metadata["of"]["part"] for hit in found]
    else:
        assert [hit.group for hit in found] == [None if path == "missing" else hit.id for hit in found]


def test_a_rare_group_is_found_below_many_hits_of_others(collection):
    wanted = compile_filter({"field": "n", "lte": 79})
    found = find(collection, "dense", k=5, group_by=GroupBy("of.part"), filter=wanted)
    assert sorted(hit.group for hit in found) == [0, 1, 2, 3, 4]


def test_mmr_is_its_definition_and_the_whole_weight_on_relevance_changes_nothing(collection):
    pool = find(collection, "dense", k=30)
    assert ids(find(collection, "dense", mmr=Mmr(1.0, "dense"), candidates=30)) == ids(pool[:10])
    vectors = {hit.id: ENCODER.vector(hit.text) for hit in pool}
    chosen = []
    while len(chosen) < 10:

        def gain(hit):
            likeness = max((float(vectors[hit.id] @ vectors[one.id]) for one in chosen), default=0.0)
            return round(0.3 * hit.score - 0.7 * likeness, 5)

        chosen.append(max((hit for hit in pool if hit not in chosen), key=gain))
    found = find(collection, "dense", mmr=Mmr(0.3, "dense"), candidates=30)
    assert ids(found) != ids(pool[:10])
    assert found[0] == pool[0]
    assert [hit.score for hit in found] == [{hit.id: hit.score for hit in pool}[hit.id] for hit in found]
    assert ids(found) == ids(chosen)


def test_spreading_counts_what_earlier_pages_showed():
    vectors = np.eye(3, dtype=np.float32)
    relevance = np.array([0.9, 0.8, 0.1], dtype=np.float32)
    assert mmr_order(relevance, vectors, 3, 0.5) == [0, 1, 2]
    assert mmr_order(relevance, vectors, 2, 0.5, vectors[:1]) == [1, 2]


def test_groups_that_were_shown_do_not_come_again():
    assert first_of_groups(["a", "b", "a", None, "c"], 2, 2, {"b"}) == ([0, 2, 3], 2)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["dense"], {}),
        (["dense", BM25], {}),
        (["dense"], {"group_by": GroupBy("of.part", 2)}),
        (["dense"], {"mmr": Mmr(0.5, "dense"), "candidates": 40}),
        (["dense", BM25], {"rerank": "multi", "also": ["multi"], "candidates": 40}),
    ],
    ids=["dense", "hybrid", "groups", "mmr", "rerank"],
)
def test_pages_show_what_one_long_page_shows(collection, names, options):
    shown, pages = [], []
    for _ in range(30):
        page = find(collection, *names, k=3, shown=shown, **options)
        shown += [hit.row for hit in page]
        pages += ids(page)
        if not page:
            break
    if "mmr" in options:
        assert sorted(pages) == sorted(ids(find(collection, *names, k=40)))
    else:
        most = options.get("candidates", 80)
        long = ids(find(collection, *names, k=most, shown=(), **options))
        assert pages == long if "group_by" not in options else len(pages) == 2 * 5
    assert len(set(pages)) == len(pages)


def test_pages_go_on_while_documents_are_written(directory, tmp_path):
    from indexing.collections.publication import create_collection

    path = collection_path(tmp_path, "docs")
    create_collection(path, {"dense": field_of(ENCODER, index="exact"), BM25: WORDS})
    with Collection.open(path, ENCODER, writable=True) as collection:
        collection.upsert([document(n) for n in range(30)])
        before = ids(find(collection, "dense", k=80))
        shown, pages = [], []
        for number in range(20):
            page = find(collection, "dense", k=4, shown=shown)
            shown += [hit.row for hit in page]
            pages += ids(page)
            collection.upsert([document(number, "new")])
            if number == 3:
                collection.compact(full=True)
        assert [name for name in pages if name.startswith("old")] == before
        assert len(set(pages)) == len(pages)


def test_explanations_say_score_and_rank_of_each_retriever(collection):
    alone = {name: find(collection, name, k=80) for name in ("dense", BM25)}
    for hit in find(collection, "dense", BM25, explain=True):
        assert hit.explanation.tokens == {}
        for name, hits in alone.items():
            rank = ids(hits).index(hit.id) + 1 if hit.id in ids(hits) else None
            told = hit.explanation.retrievers.get(name)
            assert (told and told.rank) == rank
            assert told is None or told.score == hits[rank - 1].score


@pytest.mark.parametrize("how", [{"names": ["multi"]}, {"names": ["dense"], "rerank": "multi", "also": ["multi"]}])
def test_token_matches_are_the_best_and_add_up_to_the_score(collection, how):
    how = dict(how)
    for hit in find(collection, *how.pop("names"), explain=True, **how):
        pairs = hit.explanation.tokens["multi"]
        assert sum(pair.similarity for pair in pairs) == pytest.approx(hit.score, abs=2e-2)  # float16 as kept
        words, asked_for = hit.text.split(), ["red", "cat", "sun"]
        for pair, word in zip(pairs, asked_for, strict=True):
            cosines = [_cosine(word, other) for other in words]
            assert pair.similarity == pytest.approx(max(cosines), abs=1e-2)
            if word in words:
                assert words[pair.document] == word
                assert pair.document_token == pair.query_token


def _cosine(one, other):
    a, b = direction(one, 16), direction(other, 16)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_vectors_come_back_from_segment_and_log(collection):
    found = find(collection, "dense", k=80, vectors=True)
    assert {hit.metadata["n"] >= 60 for hit in found} == {True, False}
    for hit in found:
        made = ENCODER.encode([hit.text])
        assert list(hit.vectors) == ["dense", "multi", "sparse"]
        np.testing.assert_array_equal(hit.vectors["dense"], made.dense.vectors[0])
        np.testing.assert_allclose(hit.vectors["multi"], made.multi[0], atol=1e-3)
        assert hit.vectors["sparse"] == made.sparse[0]


def test_a_cursor_holds_rows_and_belongs_to_one_search():
    rows = [5, 2**40, 0, 17]
    cursor = encode_cursor(rows, "a search")
    assert decode_cursor(cursor, "a search") == (0, 5, 17, 2**40)
    assert decode_cursor(encode_cursor([], "x"), "x") == ()
    for bad, of in [(cursor, "another"), ("*", "a search"), ("", "a search"), ("ü", "a"), (cursor[:-4], "a search")]:
        with pytest.raises(InputError) as refused:
            decode_cursor(bad, of)
        assert refused.value.field == "cursor"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mmr": Mmr(0.5, "dense"), "group_by": GroupBy("n")}, "mmr"),
        ({"mmr": Mmr(0.5, "multi")}, "mmr.field"),
        ({"rerank": "dense"}, "rerank"),
        ({"k": 0}, "top_k"),
        ({"weights": {"bm25": 1.0}}, "weights"),
        ({"weights": {"dense": -1.0}}, "weights"),
        ({"fusion": "sum"}, "fusion"),
        ({"candidates": 0}, "candidates"),
    ],
)
def test_a_plan_rejects_invalid_options(collection, change, field):
    with pytest.raises(InputError) as rejected:
        collection.plan(Options(**{"k": 10} | change), ["dense"])
    assert rejected.value.field == field


@pytest.mark.parametrize(("mode", "options"), [("other", {}), (["dense", "other"], {}), ([], {})])
def test_a_plan_rejects_unknown_fields(collection, mode, options):
    with pytest.raises(InputError) as rejected:
        collection.plan(Options(10, **options), mode)
    assert rejected.value.field == "mode"


@pytest.mark.parametrize(
    ("options", "missing", "field"),
    [
        ({}, "dense", "vectors"),
        ({"rerank": "multi"}, "multi", "rerank"),
        ({"mmr": Mmr(0.5, "dense")}, "dense", "vectors"),
    ],
)
def test_find_rejects_missing_queries(collection, options, missing, field):
    plan = collection.plan(Options(10, **options), [BM25] if "mmr" in options else ["dense"])
    assert missing in plan.required
    with pytest.raises(InputError, match=missing) as rejected:
        collection.find(plan, {name: queries for name, queries in asked().items() if name != missing})
    assert rejected.value.field == field


def test_a_plan_is_of_one_snapshot(directory, tmp_path):
    from indexing.collections.publication import create_collection

    path = collection_path(tmp_path, "docs")
    create_collection(path, {"dense": field_of(ENCODER, index="exact")})
    with Collection.open(path, ENCODER, writable=True) as collection:
        collection.upsert([document(0)])
        plan = collection.plan(Options(10))
        collection.upsert([document(1)])
        collection.compact(full=True)
        assert ids(collection.find(plan, asked())[0]) == ["old-0"]
        assert len(find(collection, "dense")) == 2


def test_options_refuse_other_values():
    for make in (
        lambda: GroupBy("", 1),
        lambda: GroupBy("a", 0),
        lambda: Mmr(1.5, "dense"),
        lambda: Mmr(True, "dense"),
    ):
        with pytest.raises(InputError):
            make()
