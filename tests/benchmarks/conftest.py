"""Benchmarks set the number of threads for their whole process; a test gives it back."""

import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
