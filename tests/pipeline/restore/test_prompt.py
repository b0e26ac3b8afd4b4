"""`--degradation`: words, free text and mixes, and what the restorer is told of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from modules.clip.daclip import Embeddings
from modules.clip.encoder import DaClipEncoder
from pipeline.restore.prompt import parse_choice, prompt_embeddings
from tests.restoring import WORDS, tiny_controller


@pytest.fixture(scope="module")
def controller() -> DaClipEncoder:
    return tiny_controller()


@pytest.fixture(scope="module")
def seen(controller: DaClipEncoder) -> Embeddings:
    return controller.embed(torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("auto", {"auto": 1}),
        ("rainy", {"rainy": 1}),
        ("rainy:0.3", {"rainy": 1}),
        ("Low light", {"low-light": 1}),
        (" low_light , noisy ", {"low-light": 0.5, "noisy": 0.5}),
        ("noisy:0.5,low-light", {"noisy": 1 / 3, "low-light": 2 / 3}),
        ("auto:3,a scratched old print:1", {"auto": 0.75, "a scratched old print": 0.25}),
        ("noisy:0,rainy:1e-3", {"noisy": 0, "rainy": 1}),
        ("sepia", {"sepia": 1}),
    ],
)
def test_choices_become_shares(text: str, shares: dict[str, float]) -> None:
    found = parse_choice(text, WORDS)
    assert list(found) == list(shares) and found == pytest.approx(shares)


def test_longest_choice_is_taken() -> None:
    text = ",".join(f"print {i}" for i in range(16))
    text += "s" * (500 - len(text))
    assert len(parse_choice(text, WORDS)) == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty part"),
        ("noisy,,rainy", "empty part"),
        (":0.5", "empty part"),
        ("noisy:", "'' in 'noisy:' is no weight"),
        ("noisy:much", "'much' in 'noisy:much' is no weight"),
        ("noisy:-1", "'-1' in 'noisy:-1' is no weight"),
        ("noisy:nan", "is no weight"),
        ("noisy:inf", "is no weight"),
        ("noisy:0", "sum to 0"),
        ("noisy:1e308,rainy:1e308", "sum to inf"),
        ("noisy,Noisy", "names 'noisy' twice"),
        ("rainny", "if 'rainy' is meant"),
        ("automatic, noissy", "if 'noisy' is meant"),
        ("a" * 501, "has 501 characters in 1 parts; it may have 500 in 16 at most"),
        (",".join(map(str, range(17))), "characters in 17 parts; it may have 500 in 16"),
    ],
)
def test_other_choices_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_choice(text, WORDS)


def test_auto_leaves_what_is_seen(controller: DaClipEncoder, seen: Embeddings) -> None:
    assert prompt_embeddings(controller, seen, {"auto": 1.0}) is seen


@pytest.mark.parametrize("text", ["rainy", "an old print"])
def test_text_gives_the_direction_and_the_image_the_length(
    controller: DaClipEncoder, seen: Embeddings, text: str
) -> None:
    told = prompt_embeddings(controller, seen, {text: 1.0})
    tokens = controller.daclip.tokenize([text])
    expected = controller.daclip.encode_text(tokens)
    assert torch.equal(told.content, seen.content)
    assert cosine_similarity(told.degradation, expected).item() == pytest.approx(1, abs=1e-5)
    assert told.degradation.norm().item() == pytest.approx(seen.degradation.norm().item(), 1e-5)


def test_mixes_are_weighted_sums_of_directions(controller: DaClipEncoder, seen: Embeddings) -> None:
    told = prompt_embeddings(controller, seen, {"noisy": 0.25, "auto": 0.25, "rainy": 0.5})
    noisy, rainy = controller.embed_texts(["noisy", "rainy"])
    own = normalize(seen.degradation[0], dim=0)
    expected = 0.25 * noisy + 0.25 * own + 0.5 * rainy
    assert cosine_similarity(told.degradation[0], expected, dim=0).item() == pytest.approx(
        1, abs=1e-5
    )
