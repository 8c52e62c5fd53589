"""Shared fixtures. The suite runs offline and on few threads, so that a laptop stays usable."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import tiny_models
import torch
from chat_server import Server
from transformers.utils import logging


torch.set_num_threads(2)
logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(**options)` gives a tiny Parrot and its processor (see `tiny_models.parrot`); towers and LMs are shared."""
    folder = tmp_path_factory.mktemp("tiny")

    def build(**options):
        return tiny_models.parrot(folder, **options)

    return build


@pytest.fixture(scope="module")
def one_thread():
    """Sums in one order, so that runs can be compared to the last bit; and tiny models do not wait for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def serve():
    """`serve(behave)` starts a `chat_server.Server`."""
    servers: list[Server] = []

    def start(behave) -> Server:
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()
