"""A hub that does not answer is asked once."""

import socket

import pytest
from huggingface_hub import constants

from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.utils import hub


@pytest.fixture
def asked(monkeypatch):
    """An address of the hub where nobody answers; counts how often a name is looked up or a host connected to."""
    found = []

    def connect(address, *_, **__):
        found.append(address)
        raise ConnectionRefusedError("nobody is here")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub._answers.cache_clear()
    yield found
    hub._answers.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once(asked):
    for _ in range(2):
        with pytest.raises(OSError, match=r"policy\.model 'nobody/nothing' is not a local folder"):
            load_tokenizer(PolicyConfig(model="nobody/nothing"))
    assert asked == [("127.0.0.1", 9)]


def test_nobody_is_asked_offline(asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.use_cache_where_unreachable()
    assert asked == []
