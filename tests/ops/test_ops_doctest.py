"""The examples in the docstrings of the ops and of Graph are true."""

import doctest

import pytest

from gnnoffload import attention, gates, graph, messages, ops, reductions


@pytest.mark.parametrize(
    "module",
    [attention, gates, graph, messages, ops, reductions],
    ids=lambda module: module.__name__,
)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
