"""Passages: their spans are slices of the text, their tokens within bounds, their hits folded back."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve import Encoder
from embedserve.errors import InputError
from indexing import Document, Hit
from indexing.sources.passages import FoldedHit, PassageSize, fold_hits, split_documents
from tests import tiny

AWKWARD = ["\n\n", " ", "東京は大きい。雨が降る！", "wordwithoutanyblanks" * 4, "👩‍🔬"]


@pytest.fixture(scope="module")
def tiny_encoder(tiny_llama):
    return Encoder.load(tiny_llama, "cpu")


def split(document, encoder, *size):
    return split_documents([document], PassageSize(*size), encoder.token_spans)[0]


def tokens_of(encoder, text):
    return len(encoder.token_spans([text])[0])


def covered(document, passages):
    """Return which characters of the text are in a passage."""
    mask = np.zeros(len(document.text), dtype=bool)
    for passage in passages:
        mask[passage.metadata["passage_start"] : passage.metadata["passage_end"]] = True
    return mask


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([*tiny.SENTENCES, "\n\n", " ", "東京は大きい。雨が降る！", "wordwithoutanyblanks" * 4, "👩‍🔬"])
    ),
    st.integers(8, 40),
    st.integers(0, 15),
    st.sampled_from(["", "A title", "A very long title " * 9]),
)
def test_spans_are_exact_and_cover_all_but_blanks(tiny_encoder, parts, tokens, overlap, title):
    text = " ".join(parts)
    if not text.strip() and not title:
        return
    overlap = min(overlap, tokens // 2 - 1)
    document = Document("d", text, title, {"kept": 1})
    passages = split(document, tiny_encoder, tokens, overlap)
    assert [passage.id for passage in passages] == [f"d#{n}" for n in range(len(passages))]
    for passage in passages:
        start, stop = passage.metadata["passage_start"], passage.metadata["passage_end"]
        assert passage.text == text[start:stop]
        assert passage.text == passage.text.strip() or not text.strip()
        assert passage.metadata["passage_of"] == "d"
        assert passage.metadata["kept"] == 1
        assert passage.title == title
        # 👩‍🔬 is 11 byte tokens that cannot be parted; a title of more than half is not made room for
        if "👩" not in text:
            assert tokens_of(tiny_encoder, passage.text) <= tokens
            if not title or tokens_of(tiny_encoder, f"{title} a") <= tokens // 2:
                assert tokens_of(tiny_encoder, passage.content) <= tokens
    mask = covered(document, passages)
    assert all(text[place].isspace() for place in np.flatnonzero(~mask))


def test_passages_end_with_sentences_and_begin_again_with_whole_ones(tiny_encoder):
    rng = random.Random(1)
    sentences = ["The cat sleeps.", "Why does a small dog paint?", "Join arrays along the bridge!"]
    text = " ".join(rng.choice(sentences) for _ in range(60))
    passages = split(Document("d", text), tiny_encoder, 60, 25)
    assert len(passages) > 5
    assert all(passage.text[-1] in ".!?" for passage in passages)
    assert all(any(sentence.startswith(passage.text[:10]) for sentence in sentences) for passage in passages)
    spans = [(p.metadata["passage_start"], p.metadata["passage_end"]) for p in passages]
    overlaps = [tokens_of(tiny_encoder, text[later[0] : earlier[1]]) for earlier, later in pairwise(spans)]
    assert max(overlaps) > 5
    assert max(overlaps) <= 26  # cut out alone, a word may be a token more


def test_without_sentences_words_stay_whole(tiny_encoder):
    text = "evening bridge sleeps watches " * 30
    passages = split(Document("d", text), tiny_encoder, 20, 4)
    words = {word for passage in passages for word in passage.text.split()}
    assert words == {"evening", "bridge", "sleeps", "watches"}


def test_a_short_document_is_one_passage(tiny_encoder):
    assert split(Document("d", " a small dog\n"), tiny_encoder, 20) == [
        Document("d#0", "a small dog", "", {"passage_of": "d", "passage_start": 1, "passage_end": 12})
    ]
    assert split(Document("d", "", "title only"), tiny_encoder, 20)[0].text == ""


def test_sizes_and_fields_that_make_no_sense_are_refused(tiny_encoder):
    for size, field in (((7, 0), "passage_tokens"), ((20, 10), "overlap"), ((20, -1), "overlap")):
        with pytest.raises(InputError) as raised:
            PassageSize(*size)
        assert raised.value.field == field
    with pytest.raises(InputError, match=r"texts\[0\] has metadata 'passage_of', which is reserved for passages"):
        split(Document("d", "x", "", {"passage_of": "mine"}), tiny_encoder, 20)


def test_hits_fold_into_their_documents_best_passage_first():
    def hit(name, score, parent=None):
        return Hit(name, score, "text", "", {} if parent is None else {"passage_of": parent})

    hits = [hit("a#1", 0.9, "a"), hit("b#0", 0.8, "b"), hit("a#0", 0.7, "a"), hit("c", 0.75), hit("b#4", 0.85, "b")]
    folded = fold_hits(hits)
    assert folded == [
        FoldedHit("a", 0.9, [hits[0], hits[2]]),
        FoldedHit("b", 0.85, [hits[4], hits[1]]),
        FoldedHit("c", 0.75, [hits[3]]),
    ]
    assert fold_hits(hits, 2) == folded[:2]
