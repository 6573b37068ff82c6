"""``embedserve strategies``: the listing of strategies and their options."""

from embedserve.strategies import STRATEGIES


def test_every_strategy_is_listed(shell):
    result = shell("strategies")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[0] for line in result.out.splitlines()] == list(STRATEGIES)


def test_the_options_of_a_strategy_have_default_values_and_help(shell):
    result = shell("strategies", "glot")
    assert 'conv="gat"' in result.out
    assert "(a whole number of at least 1)" in result.out
    options = shell("strategies", "glot", "--json").json["glot"]
    assert options[0] == {
        "name": "conv",
        "default": "gat",
        "allowed": "gat, gcn or gin",
        "help": "graph layer: attention, convolution or isomorphism",
    }


def test_an_unknown_strategy_is_refused_with_the_nearest_name(shell):
    result = shell("strategies", "glott")
    assert result.code == 2
    assert "did you mean 'glot'" in result.err


def test_help_has_examples(shell):
    assert "Examples:" in shell("strategies", "--help").out
