"""A small served classifier, and a client that asks the application without a network."""

import pytest
from starlette.testclient import TestClient
from tiny import random_classifier

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import ledger
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.web.app import make_app
from gpt2_from_scratch.web.models import Model

BASE_URL = "http://127.0.0.1:8124"


@pytest.fixture(scope="session")
def classifier(tiny_checkpoint) -> Classifier:
    return random_classifier(tiny_checkpoint, HeadConfig(labels=("ham", "<b>spam</b>")))


@pytest.fixture(scope="session")
def models(tiny_checkpoint, classifier) -> dict[str, Model]:
    def model(name: str, classifier: Classifier) -> Model:
        parts = ledger(classifier.model, heads=classifier.description.heads)
        return Model(name, classifier, parts, load_gpt2(tiny_checkpoint).eval())

    values = HeadConfig(task="regression", labels=("stars",))
    other = random_classifier(tiny_checkpoint, values)
    return {"first": model("first", classifier), "second": model("second", other)}


@pytest.fixture(scope="session")
def client(models) -> TestClient:
    return TestClient(make_app(models), base_url=BASE_URL)
