"""Small evaluation sets of every kind, in the layout that the harness reads."""

import json

import numpy as np

WORDS = "cat dog bridge garden storm engine judge map letter rain lunch array axis number item river".split()  # noqa: SIM905


def write_sets(root):
    """Write a small set of every kind below ``root``."""
    rng = np.random.default_rng(0)

    def text(count=6):
        return " ".join(rng.choice(WORDS, count))

    def lines(name, rows):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    (root / "sts" / "stsb").mkdir(parents=True)
    pairs = [(round(float(rng.uniform(0, 5)), 1), text(), text()) for _ in range(30)]
    (root / "sts" / "stsb" / "test.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in pairs))
    corpus = [{"_id": f"d{n}", "title": "", "text": text(12)} for n in range(40)] + [{"_id": "empty", "text": ""}]
    queries = [{"_id": f"q{n}", "text": " ".join(corpus[n]["text"].split()[:4])} for n in range(15)]
    for name in ("scifact", "cranfield"):
        lines(f"retrieval/{name}/corpus.jsonl", corpus)
        lines(f"retrieval/{name}/queries.jsonl", queries)
        (root / "retrieval" / name / "qrels").mkdir()
        rows = "".join(f"q{n}\td{n}\t1\n" for n in range(15))
        (root / "retrieval" / name / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    (root / "pair" / "msrp").mkdir(parents=True)
    rows = [f"{n % 2}\t{text()}\t{text()}\n" for n in range(20)]
    (root / "pair" / "msrp" / "test.tsv").write_text("".join(rows))
    rerank = [{"query": text(3), "positive": [text()], "negative": [text(), text()]} for _ in range(6)]
    lines("reranking/trecqa/test.jsonl", rerank)
    for split, count in (("train", 40), ("test", 20)):
        rows = [{"text": text(), "label": ["yes", "no"][n % 2]} for n in range(count)]
        lines(f"classification/sst2/{split}.jsonl", [*rows, {"text": "", "label": "no"}])
    lines("clustering/bbc/test.jsonl", [{"text": text(), "label": n % 3} for n in range(30)])
    return root
