"""Names on the Hub: asked for where its address is known, and refused at once where it is not."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from gritvq import lazy
from gritvq.images import ImageData, pretrained_encoder
from gritvq.text.corpus import Corpus


class Asked(Exception):
    """The client was asked."""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the clients were asked for, which have nothing; no proxy, and nothing fetched before."""
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    calls: list[dict[str, Any]] = []

    def client(name: str, **settings: Any) -> None:
        calls.append({"name": name, **settings})
        raise Asked("nothing there")

    monkeypatch.setattr(datasets, "load_dataset", client)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", client)
    monkeypatch.setattr(lazy, "getproxies", dict)
    return calls


def network(monkeypatch: pytest.MonkeyPatch, *known: str) -> list[str]:
    """A network with these names; the names that are looked up."""
    looked_up: list[str] = []

    def getaddrinfo(host: str, *_: Any) -> list[Any]:
        looked_up.append(host)
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return looked_up


def test_data_sets_are_refused_at_once_without_a_network(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network(monkeypatch)
    for name in ("nowhere", "owner/name"):
        for opened in (lambda name: ImageData(name).setup("fit"), Corpus):
            with pytest.raises(ValueError, match=f"or a data set on the Hub, got '{name}'"):
                opened(name)
    with pytest.raises(ValueError, match="the address of the Hub is not known here, as without a network; correct"):
        ImageData("owner/name").setup("fit")
    assert asked == []


def test_names_are_asked_for_with_a_network(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = network(monkeypatch, "huggingface.co")
    for name in ("single", "owner/name"):
        for opened in (lambda name: ImageData(name).setup("fit"), Corpus, pretrained_encoder):
            with pytest.raises(ValueError, match=f"got '{name}'"):
                opened(name)
    assert [call["name"] for call in asked] == 3 * ["single"] + 3 * ["owner/name"]
    assert [call["local_files_only"] for call in asked[2::3]] == [False, False]
    assert set(looked_up) == {"huggingface.co"}


def test_a_vision_model_may_still_be_one_that_was_fetched(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network(monkeypatch)
    with pytest.raises(ValueError, match="reachable Hub name, got 'owner/name'"):
        pretrained_encoder("owner/name")
    assert [call["local_files_only"] for call in asked] == [True]


def test_a_data_set_that_was_fetched_is_asked_for(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network(monkeypatch)
    (tmp_path / "cache" / "owner___my_name").mkdir(parents=True)
    for name, number in (("owner/MyName", 1), ("owner/other", 1)):
        with pytest.raises(ValueError, match=f"got '{name}'"):
            ImageData(name).setup("fit")
        assert len(asked) == number


def test_another_address_and_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "getproxies", lambda: {"no": "localhost"})
    looked_up = network(monkeypatch, "mirror.example")
    assert not lazy.hub_in_reach()
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8000/hub")
    assert lazy.hub_in_reach() and looked_up == ["huggingface.co", "mirror.example"]
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setattr(lazy, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert lazy.hub_in_reach() and len(looked_up) == 2
