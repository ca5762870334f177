"""The preemption notice of Google Cloud, from a stand-in for its metadata server."""

import time

import pytest

from sweep.cluster import preemption
from tests.support.metadata_stub import metadata_server


@pytest.fixture
def metadata(monkeypatch):
    with metadata_server() as server:
        monkeypatch.setenv(preemption.METADATA_HOST, server.host)
        yield server


def test_the_notice_is_heard_as_soon_as_it_is_given(metadata):
    noticed = preemption.watch()
    assert metadata.asked.wait(10), "it waits for a change"
    assert not noticed.is_set()
    begin = time.monotonic()
    metadata.preempted.set()
    assert noticed.wait(10)
    assert time.monotonic() - begin < 5


def test_a_notice_from_before_is_heard_too(metadata):
    metadata.preempted.set()
    assert preemption.watch().wait(10)


def test_a_server_that_does_not_answer_is_asked_again(metadata, monkeypatch):
    url = preemption.notice_url()
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        monkeypatch.setattr(preemption, "LONGEST_ANSWER", 1.0)
        metadata.preempted.set()

    monkeypatch.setattr(preemption.time, "sleep", pause)
    answers = iter([503])
    handler = metadata.RequestHandlerClass
    serve = handler.do_GET
    monkeypatch.setattr(handler, "do_GET", lambda self: self.send_error(503) if next(answers, None) else serve(self))
    preemption.wait_for_notice(url)
    assert pauses == [preemption.ASK_AGAIN]


def test_a_server_that_does_not_wait_for_a_change_is_not_asked_on_and_on(metadata, monkeypatch):
    answers, pauses = iter(["FALSE", "FALSE", "TRUE"]), []
    monkeypatch.setattr(preemption.time, "sleep", pauses.append)
    monkeypatch.setattr(metadata.RequestHandlerClass, "do_GET", lambda self: self.reply(200, next(answers).encode()))
    preemption.wait_for_notice(preemption.notice_url())
    assert pauses == [preemption.ASK_AGAIN] * 2


def test_other_machines_are_not_asked(monkeypatch, tmp_path):
    monkeypatch.delenv(preemption.METADATA_HOST, raising=False)
    product = tmp_path / "product_name"
    monkeypatch.setattr(preemption, "PRODUCT", product)
    assert preemption.notice_url() is None
    product.write_text("PowerEdge\n")
    assert preemption.notice_url() is None
    product.write_text("Google Compute Engine\n")
    assert preemption.notice_url() == "http://metadata.google.internal/computeMetadata/v1/instance/preempted"
