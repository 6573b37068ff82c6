"""The smallest strategy with trained weights: mean pooling and a square matrix. For the tests of training."""

from dataclasses import dataclass

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import Dense
from embedserve.decoder import Decoder
from embedserve.strategies.plain import pooling
from embedserve.strategies.strategy import Strategy, option


@dataclass(frozen=True)
class LinearHeadStrategy(Strategy):
    bias: bool = option(False, "add a bias")

    def is_trained(self):
        return True

    def build(self, spec, folder):
        decoder = load_decoder(spec, folder, Decoder)
        width = hidden_size(decoder)
        return [decoder, pooling("mean", width), Dense(width, width, bias=self.bias)]
