"""GLOT: parity with the published code, the slow obvious way, and the method's invariants."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embedserve import Encoder, EncoderSpec, SpecError
from embedserve.strategies import glot
from embedserve.strategies.glot import TokenGraphPooling, adjacency
from tests.tiny import SENTENCES

GOLDEN = Path(__file__).parent.parent / "golden" / "glot"
RUNS = json.loads((GOLDEN / "index.json").read_text())
RENAMED = {
    "nn.lins.0": "first",
    "nn.lins.1": "second",
    "nn.norms.0.module": "norm",
    "score_layer": "score",
}


def arrays(name):
    with np.load(GOLDEN / name) as file:
        return dict(file)


def weights_of(golden):
    """The published weights under our names."""
    found = {}
    for name, value in golden.items():
        if not name.startswith("w.") or name.endswith(".eps"):
            continue
        name = name[2:]
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        tensor = torch.tensor(value)
        found[name] = tensor.flatten() if ".att_" in name else tensor
    return found


def pooling_of(run):
    golden = arrays(f"{run['name']}.npz")
    pooling = TokenGraphPooling(64, run["conv"], run["gat_hidden_dim"], run["num_layers"], run["tau"], run["jk"])
    pooling.load_state_dict(weights_of(golden))
    return pooling.eval(), golden


def made_up(conv="gat", seed=0, tokens=(7, 3, 11), width=12, **options):
    """A random pooling in inference mode, and states with their mask."""
    torch.manual_seed(seed)
    pooling = TokenGraphPooling(width, conv, **{"hidden": 5, "layers": 2, "tau": 0.1, **options}).eval()
    states = torch.randn(len(tokens), max(tokens), width)
    mask = torch.arange(max(tokens))[None] < torch.tensor(tokens)[:, None]
    return pooling, states, mask.long()


def pooled(pooling, states, mask):
    with torch.no_grad():
        return pooling({"token_embeddings": states, "attention_mask": mask})["sentence_embedding"]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_the_head_equals_the_published_code(run):
    pooling, golden = pooling_of(run)
    base = arrays(f"{run['name'].split('_')[0]}_base.npz")
    states, mask = torch.tensor(base["hidden"]), torch.tensor(base["attention_mask"])
    graph = adjacency(states, mask, run["tau"])
    assert int(graph.sum()) == run["edges"]
    np.testing.assert_allclose(pooled(pooling, states, mask), golden["z"], atol=2e-5)


@pytest.mark.parametrize("run", [RUNS[0], RUNS[-1]], ids=lambda run: run["name"])
def test_the_whole_encoder_equals_the_published_code(run):
    pooling, golden = pooling_of(run)
    options = {"conv": run["conv"], "hidden": run["gat_hidden_dim"], "layers": run["num_layers"], "tau": run["tau"]}
    backbone = GOLDEN.parent / "models" / run["model"].split("/")[1]
    encoder = Encoder.load(EncoderSpec("glot", str(backbone), options, head="random"), device="cpu")
    encoder.model[1].load_state_dict(pooling.state_dict())
    texts = json.loads((GOLDEN.parent / "texts.json").read_text())
    np.testing.assert_allclose(encoder.embed(texts).vectors, golden["z_l2"], atol=1e-5)


@pytest.mark.parametrize("conv", ["gat", "gcn", "gin"])
@pytest.mark.parametrize("tau", [-1.5, 0.1, 0.9999])
def test_it_equals_pytorch_geometric(conv, tau):
    geometric = pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
    pooling, states, mask = made_up(conv, tau=tau)
    own = pooling.convs[0]
    if conv == "gat":
        other = geometric.nn.GATConv(12, 5, heads=1, edge_dim=1)
        other.load_state_dict(
            {name: value.view(1, 1, -1) if "att_" in name else value for name, value in own.state_dict().items()}
        )
    elif conv == "gcn":
        other = geometric.nn.GCNConv(12, 5)
        other.load_state_dict(own.state_dict())
    else:
        other = geometric.nn.GINConv(torch.nn.Sequential(own.first, own.norm, torch.nn.ReLU(), own.second))
    other.eval()
    graph = adjacency(states, mask, tau)
    with torch.no_grad():
        for row, length in enumerate(mask.sum(1).tolist()):
            edges = graph[row, :length, :length].nonzero().T
            attributes = {"edge_attr": torch.ones(edges.shape[1], 1)} if conv == "gat" else {}
            expected = other(states[row, :length], edges, **attributes)
            found = own(
                states[row : row + 1, :length], graph[row : row + 1, :length, :length], mask[row : row + 1, :length]
            )
            np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize("conv", ["gat", "gcn", "gin"])
def test_the_order_of_tokens_does_not_matter(conv):
    pooling, states, mask = made_up(conv, tokens=(9,))
    order = torch.randperm(9)
    np.testing.assert_allclose(pooled(pooling, states, mask), pooled(pooling, states[:, order], mask), atol=1e-5)


@pytest.mark.parametrize("conv", ["gat", "gcn", "gin"])
def test_padding_and_gaps_do_not_change_the_vector(conv):
    pooling, states, mask = made_up(conv, tokens=(4,))
    expected = pooled(pooling, states, mask)
    spread, holes = torch.randn(1, 9, 12) * 100, torch.zeros(1, 9, dtype=torch.long)
    for places in ([0, 1, 2, 3], [5, 6, 7, 8], [1, 3, 4, 8]):
        spread[0, places], holes[0] = states[0, :4], 0
        holes[0, places] = 1
        np.testing.assert_allclose(pooled(pooling, spread, holes), expected, atol=1e-5)


def test_without_edges_tokens_do_not_mix():
    pooling, states, mask = made_up("gat", tokens=(4,), tau=1.5)
    graph = adjacency(states, mask, 1.5)
    assert not graph.any()
    with torch.no_grad():
        one = pooling.convs[0](states, graph, mask)
        moved = states.clone()
        moved[0, 2] += 1
        other = pooling.convs[0](moved, graph, mask)
    np.testing.assert_array_equal(one[0, [0, 1, 3]], other[0, [0, 1, 3]])
    assert (one[0, 2] - other[0, 2]).abs().max() > 1e-3


def test_in_the_complete_graph_gcn_makes_all_tokens_equal():
    pooling, states, mask = made_up("gcn", tokens=(6,), tau=-1.5)
    with torch.no_grad():
        found = pooling.convs[0](states, adjacency(states, mask, -1.5), mask)[0]
    np.testing.assert_allclose(found, found[:1].expand_as(found), atol=1e-6)


@pytest.mark.parametrize("conv", ["gat", "gcn", "gin"])
def test_the_first_part_of_the_vector_is_a_convex_combination_of_the_tokens(conv):
    pooling, states, mask = made_up(conv, tokens=(8,))
    found = pooled(pooling, states, mask)[0]
    assert found.shape == (12 + 2 * 5,)
    assert (found[:12] <= states[0].amax(0) + 1e-5).all()
    assert (found[:12] >= states[0].amin(0) - 1e-5).all()
    assert (found[12:] >= 0).all()


def test_the_graph_reads_directions_only_and_is_symmetric():
    _, states, mask = made_up(tokens=(9, 5))
    graph = adjacency(states, mask, 0.1)
    np.testing.assert_array_equal(graph, adjacency(states * torch.rand(2, 9, 1).add(0.1), mask, 0.1))
    np.testing.assert_array_equal(graph, graph.transpose(1, 2))
    assert not graph[1, 5:].any()


@pytest.mark.parametrize(("conv", "same"), [("gat", True), ("gcn", True), ("gin", False)])
def test_doubled_tokens_change_only_sums(conv, same):
    pooling, states, mask = made_up(conv, tokens=(6,))
    doubled = pooled(pooling, states.repeat(1, 2, 1), mask.repeat(1, 2))
    difference = (doubled - pooled(pooling, states, mask)).abs().max()
    assert (difference < 1e-5) == same


def test_the_vector_of_one_token_is_its_layers():
    pooling, states, mask = made_up("gat", tokens=(1,))
    first, second = pooling.convs
    with torch.no_grad():
        one = (first.lin(states[0, 0]) + first.bias).relu()
        two = (second.lin(one) + second.bias).relu()
    np.testing.assert_allclose(pooled(pooling, states, mask)[0], torch.cat([states[0, 0], one, two]), atol=1e-6)


def test_a_text_without_nodes_does_not_change_others_in_the_batch():
    pooling, states, mask = made_up(tokens=(5, 5))
    expected = pooled(pooling, states, mask)[1]
    mask[0] = 0
    found = pooled(pooling, states, mask)
    assert found.isfinite().all()
    np.testing.assert_allclose(found[1], expected, atol=1e-6)


def test_a_batch_in_chunks_equals_the_whole_batch(monkeypatch):
    pooling, states, mask = made_up()
    expected = pooled(pooling, states, mask)
    monkeypatch.setattr(glot, "PAIRS_AT_A_TIME", 1)
    np.testing.assert_allclose(pooled(pooling, states, mask), expected, atol=1e-6)


@pytest.mark.parametrize("conv", ["gat", "gcn", "gin"])
def test_every_weight_learns(conv):
    pooling, states, mask = made_up(conv)
    pooling.train()
    pooling({"token_embeddings": states, "attention_mask": mask})["sentence_embedding"].square().sum().backward()
    still = {name for name, weight in pooling.named_parameters() if weight.grad is None or not weight.grad.any()}
    # A number added to every logit of a complete neighbourhood cancels in the softmax but for the kink of leaky ReLU;
    # the last bias of the scorer always does.
    assert still <= {"score.2.bias"}


@pytest.mark.parametrize("conv", ["gat", "gcn", "gin"])
@pytest.mark.parametrize("jumping_knowledge", ["cat", "max", "mean"])
def test_batches_of_an_encoder_agree(tiny_llama, conv, jumping_knowledge):
    options = {"conv": conv, "jumping_knowledge": jumping_knowledge, "hidden": 8, "layers": 2, "skip_begin": True}
    encoder = Encoder.load(EncoderSpec("glot", str(tiny_llama), options, head="random"), device="cpu")
    together = encoder.embed(SENTENCES).vectors
    alone = np.concatenate([encoder.embed([text]).vectors for text in SENTENCES])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert encoder.dim == (32 + 16 if jumping_knowledge == "cat" else 8)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"conv": "gine"}, "conv"),
        ({"jumping_knowledge": "lstm"}, "jumping_knowledge"),
        ({"layers": 0}, "layers"),
        ({"hidden": 1.5}, "hidden"),
        ({"tau": "0.3"}, "tau"),
        ({"skip_begin": 1}, "skip_begin"),
        ({"readout_hidden": 0}, "readout_hidden"),
    ],
)
def test_invalid_options_are_refused(tiny_llama, options, word):
    with pytest.raises(SpecError, match=f"options.{word}"):
        Encoder.load(EncoderSpec("glot", str(tiny_llama), options, head="random"), device="cpu")
