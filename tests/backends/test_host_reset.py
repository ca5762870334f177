"""The host has a library forget earlier prompts between trials, when nothing runs."""

import pytest

from tests.backends.test_host import model  # noqa: F401 - a fixture
from tests.backends.test_host_continuous import Stepper, client, complete  # noqa: F401 - a fixture


class Forgetting(Stepper):
    """Forgets as often as it is told to, unless rows run; answers what the test wants."""

    answer: bool | None = True

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0

    def reset_caches(self) -> bool:
        assert not self.rows, "rows run"
        self.resets += 1
        if self.answer is None:
            raise RuntimeError("lost its pages")
        return self.answer


@pytest.fixture
def library() -> Stepper:
    return Forgetting()


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [(True, 200, '{"success": true}'), (False, 200, '{"success": false}'), (None, 500, "lost its pages")],
)
def test_a_library_that_can_is_told_to(client, library, answer, status, said):  # noqa: F811
    library.answer = answer
    complete(client, [10], 3)
    found = client.post("/reset_caches")
    assert (found.status_code, library.resets) == (status, 1)
    assert said in found.text
    assert complete(client, [10], 3).json()["choices"][0]["token_ids"] == [11, 12, 13]


class TestOfOneThatCannot:
    @pytest.fixture
    def library(self) -> Stepper:
        return Stepper()

    def test_it_is_said(self, client):  # noqa: F811
        found = client.post("/reset_caches")
        assert found.status_code == 404
        assert "has no cache reset" in found.text
