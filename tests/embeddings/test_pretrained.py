"""Models of the Hugging Face hub, where there is no network."""

import socket

import pytest

from fuxictr_mm.embeddings import pretrained
from fuxictr_mm.errors import MissingFileError
from tests.errors import raises_naming


def test_a_hub_that_does_not_answer_is_waited_for_once(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(pretrained, "PATIENCE", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with raises_naming(MissingFileError, "someone/tiny-bert", url):
            pretrained.find_model("someone/tiny-bert")
        silent.settimeout(5)
        silent.accept()
        silent.settimeout(0.2)
        with pytest.raises(TimeoutError):  # one connection alone, which is not repeated
            silent.accept()
