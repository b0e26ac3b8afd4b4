from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from modules.clip.daclip import DaClip, build_daclip
from modules.clip.losses import gather, info_nce, multi_positive

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 9, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
RANKS, SHARE = 2, 3
CAPTIONS = ["a cat", "two dogs", "a street at night", "a red boat", "the sea", "an old house"]
WORDS = ["rainy", "noisy", "rainy", "rainy", "snowy", "noisy"]


def features(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 5, generator=generator, dtype=torch.float64), dim=-1)


def test_info_nce_by_hand():
    """Two pairs at right angles: each row's softmax is e^s / (e^s + 1)."""
    eye, scale = torch.eye(2), torch.tensor(3.0)
    expected = torch.log1p(torch.exp(-scale))
    torch.testing.assert_close(info_nce(eye, eye, scale), expected)
    torch.testing.assert_close(info_nce(eye, eye.flip(0), scale), expected + scale)


def test_losses_are_symmetric():
    u, v, scale, ids = features(6, 1), features(6, 2), torch.tensor(4.0), torch.arange(6) // 2
    assert info_nce(u, v, scale) == pytest.approx(info_nce(v, u, scale).item())
    assert multi_positive(u, v, scale, ids) == pytest.approx(
        multi_positive(v, u, scale, ids).item()
    )


def test_multi_positive_with_distinct_ids_is_info_nce():
    u, v, scale = features(6, 1), features(6, 2), torch.tensor(4.0)
    loss = multi_positive(u, v, scale, torch.tensor([5, 3, 9, 0, 7, 1]))
    torch.testing.assert_close(loss, info_nce(u, v, scale))


def test_multi_positive_by_hand():
    """The definition, sample by sample."""
    u, v, scale = features(5, 1), features(5, 2), 4.0
    ids = [0, 1, 0, 2, 0]
    expected = 0.0
    for logits in scale * u @ v.T, scale * v @ u.T:
        for i, row in enumerate(logits.log_softmax(dim=-1)):
            positives = [j for j in range(5) if ids[j] == ids[i]]
            share = 1 / len(positives)
            kl = sum(share * (torch.tensor(share).log().item() - row[j].item()) for j in positives)
            expected += kl / 10
    loss = multi_positive(u, v, torch.tensor(scale), torch.tensor(ids))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_perfect_multi_positive_is_zero_where_info_nce_is_not():
    ids = torch.tensor([0, 1, 1, 2, 2, 2])
    perfect, scale = torch.eye(3)[ids], torch.tensor(50.0)
    assert multi_positive(perfect, perfect, scale, ids).abs() < 1e-6
    floor = torch.tensor([1.0, 2, 2, 3, 3, 3]).log().mean()
    torch.testing.assert_close(info_nce(perfect, perfect, scale), floor)


def test_on_shared_texts_the_losses_differ_by_a_constant():
    """The class's text is one vector, so identity and uniform targets have the same gradient."""
    ids = torch.tensor([0, 1, 1, 2, 2, 2])
    u, texts, scale = features(6, 1).requires_grad_(), features(3, 2)[ids], torch.tensor(4.0)
    identity, uniform = info_nce(u, texts, scale), multi_positive(u, texts, scale, ids)
    floor = torch.tensor([1.0, 2, 2, 3, 3, 3], dtype=torch.float64).log().mean()
    torch.testing.assert_close(identity, uniform + floor)
    gradients = (torch.autograd.grad(loss, u)[0] for loss in (identity, uniform))
    torch.testing.assert_close(*gradients)


def test_logits_keep_float32_under_autocast():
    u, v, scale = features(6, 1).float(), features(6, 2).float(), torch.tensor(100.0)
    expected = info_nce(u, v, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(u, v, scale), expected)


def test_gather_alone_is_the_input():
    u = features(3, 1)
    assert gather(u) is u


def test_ranks_have_the_gradients_of_the_joint_batch(tmp_path):
    """Two processes of three samples each against one process with all six."""
    single = controlled_daclip()
    joint_loss(single, single, slice(None), gather).backward()
    expected = gradients(single)

    torch.multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=RANKS)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for result in results:
        assert torch.equal(result["ids"], torch.arange(RANKS * SHARE))
        assert result["gathered"].keys() == expected.keys()
        for key, gradient in expected.items():
            assert error(result["gathered"][key], gradient) < 1e-5, key
    cut = results[0]["cut"]
    assert max(error(cut[key], gradient) for key, gradient in expected.items()) > 0.1


def controlled_daclip() -> DaClip:
    """The same weights wherever it is built, with a control that is not zero."""
    torch.manual_seed(0)
    daclip = build_daclip(TINY)
    for parameter in daclip.controller.zero_linears.parameters():
        nn.init.normal_(parameter, std=0.1)
    return daclip


def joint_loss(network: nn.Module, daclip: DaClip, share: slice, gathered) -> Tensor:
    """Both losses on this share of the batch and what `gathered` adds of the others'."""
    view = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    embeddings = network(view[share])
    captions, words = (daclip.encode_text(daclip.tokenize(t[share])) for t in (CAPTIONS, WORDS))
    content, degradation, captions, words = (
        gathered(normalize(f, dim=-1)) for f in (*embeddings, captions, words)
    )
    ids = gather(torch.tensor([sorted(set(WORDS)).index(word) for word in WORDS])[share])
    scale = daclip.logit_scale.exp()
    return info_nce(content, captions, scale) + multi_positive(degradation, words, scale, ids)


def gradients(daclip: DaClip) -> dict[str, Tensor]:
    return {key: p.grad.clone() for key, p in daclip.named_parameters() if p.requires_grad}


def error(ours: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def gather_without_gradient(features: Tensor) -> Tensor:
    """Own features with their gradient, the others' as constants: the usual mistake."""
    gathered = gather(features.detach())
    start = torch.distributed.get_rank() * SHARE
    return torch.cat([gathered[:start], features, gathered[start + SHARE :]])


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    daclip = controlled_daclip()
    network = DistributedDataParallel(daclip)
    share = slice(rank * SHARE, (rank + 1) * SHARE)
    result: dict[str, object] = {"ids": gather(torch.arange(RANKS * SHARE)[share])}
    for name, gathered in ("gathered", gather), ("cut", gather_without_gradient):
        daclip.zero_grad()
        joint_loss(network, daclip, share, gathered).backward()
        result[name] = gradients(daclip)
    torch.save(result, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
