"""Every test here asks llama.cpp itself, which `make oracle` builds; without it they are skipped."""

import pytest

from tests.oracle import oracle


@pytest.fixture(autouse=True, scope="session")
def _needs_the_oracle() -> None:
    if reason := oracle.absent():
        pytest.skip(reason)
