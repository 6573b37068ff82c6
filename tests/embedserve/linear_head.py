"""The smallest strategy with trained weights: mean pooling and a square matrix. For the tests of training."""

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import Dense, Pooling
from embedserve.decoder import Decoder

OPTIONS = {"bias": False}
TRAINED = True


def build(spec, options, folder):
    transformer = load_decoder(spec, folder, Decoder)
    width = hidden_size(transformer)
    return [transformer, Pooling(width, pooling_mode="mean"), Dense(width, width, bias=options["bias"])]
