"""RQ-VAE: its arithmetic by hand, its training, and its MLPs in NumPy."""

import numpy as np
import pytest
import torch

from fuxictr_mm.embeddings.codebooks import Modality, Space, load_codebooks, save_codebooks
from fuxictr_mm.embeddings.rqvae import RQVAE, fit_rqvae
from fuxictr_mm.errors import UserError
from tests.errors import raises_naming


@pytest.fixture(scope="module")
def x():
    """Points near a curve, which few linear directions do not describe."""
    generator = np.random.default_rng(0)
    angle = generator.uniform(0, 2 * np.pi, size=(500, 1))
    curve = np.concatenate([np.cos(k * angle) for k in (1, 2, 3)] + [np.sin(k * angle) for k in (1, 2, 3)], axis=1)
    return (curve + 0.02 * generator.normal(size=curve.shape)).astype(np.float32)


def fit(x, steps=400, seed=1, **options):
    options = {"hidden_units": (32,), "latent_dim": 4, "batch_size": 128, "learning_rate": 3e-3, **options}
    space = Space.fit(x, [Modality("text", "emb", x.shape[1])], "modality")
    return fit_rqvae(space, space.transform(x), 3, 8, seed, steps=steps, **options)


@pytest.fixture(scope="module")
def book(x):
    return fit(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = RQVAE(2, (), 2, levels=2, codes=2).double()
    with torch.no_grad():
        model.codebooks.copy_(torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]))
        for network in (model.encoder, model.decoder):
            network[0].weight.copy_(torch.eye(2))
            network[0].bias.zero_()
    return model


POINT = torch.tensor([[4.5, 0.9]], dtype=torch.float64)


def test_levels_describe_residuals(model):
    codes, chosen, residuals = model.quantize(POINT)
    assert codes.tolist() == [[1, 1]]
    assert chosen.tolist() == [[[4.0, 0.0], [0.0, 1.0]]]
    torch.testing.assert_close(residuals, torch.tensor([[[4.5, 0.9], [0.5, 0.9]]]).double())


def test_loss_and_its_gradients_by_hand(model):
    """The decoder's gradient reaches the encoder as if nothing were quantized; codes are pulled to residuals."""
    loss, _, _ = model.loss(POINT, torch.tensor([2]))
    # decoded (4, 1); residuals (4.5, 0.9) and (0.5, 0.9); means over two numbers
    reconstruction = (0.5**2 + 0.1**2) / 2
    levels = (0.5**2 + 0.9**2) / 2 + (0.5**2 + 0.1**2) / 2
    assert loss.item() == pytest.approx(reconstruction + 1.25 * levels)
    loss.backward()
    # 2/2 (e - r) at each level
    torch.testing.assert_close(model.codebooks.grad[0, 1], torch.tensor([-0.5, -0.9]).double())
    torch.testing.assert_close(model.codebooks.grad[1, 1], torch.tensor([-0.5, 0.1]).double())
    assert (model.codebooks.grad[:, 0] == 0).all()
    # through the decoder (g - x) and by commitment 0.25 (r - e), both levels
    by_latent = torch.tensor([-0.5 + 0.25 * (0.5 + 0.5), 0.1 + 0.25 * (0.9 - 0.1)]).double()
    torch.testing.assert_close(model.encoder[0].bias.grad, by_latent)


def test_only_the_first_levels_are_decoded(model):
    """(4, 1) of both levels, (4, 0) of the first."""
    both, first = (model.loss(POINT, torch.tensor([depth]))[0].item() for depth in (2, 1))
    assert first - both == pytest.approx((0.9**2 - 0.1**2) / 2)


def test_k_means_initializes_the_codebooks(model):
    x = torch.tensor([[0.0, 0.0], [0.0, 0.2], [5.0, 0.0], [5.0, 0.2]]).double()
    model.initialize_codebooks(x, seed=0)
    torch.testing.assert_close(model.codebooks[0].sort(dim=0).values, torch.tensor([[0.0, 0.1], [5.0, 0.1]]).double())
    codes, _, _ = model.quantize(model.encoder(x))
    assert len(codes.unique(dim=0)) == 4


def test_unused_codes_are_reset_to_residuals(model):
    residuals = torch.tensor([[[7.0, 7.0], [8.0, 8.0]]]).double()
    kept = model.codebooks.detach().clone()
    model.reset_unused(torch.tensor([[True, False], [True, True]]), residuals, torch.Generator().manual_seed(0))
    assert model.codebooks[0, 1].tolist() == [7.0, 7.0]
    assert (model.codebooks[0, 0] == kept[0, 0]).all()
    assert (model.codebooks[1] == kept[1]).all()


def test_codes_are_reset_after_a_whole_pass_only(x, monkeypatch):
    # 11 batches a pass; the codebooks begin at step 10, the last of the first pass.
    passed, resets, loss = [], [], RQVAE.loss
    monkeypatch.setattr(RQVAE, "loss", lambda self, *given: passed.append(1) or loss(self, *given))
    monkeypatch.setattr(RQVAE, "reset_unused", lambda *given: resets.append(len(passed)))
    fit(x[:176], steps=100, batch_size=16)
    assert resets[:2] == [12, 23]


def test_error_falls_with_every_level_and_all_codes_are_used(book, x):
    z, codes = book.space.transform(x), book.encode(x)
    errors = [float(np.square(z - known).sum() / np.square(z).sum()) for known in book.reconstructions(codes)]
    assert errors[2] < errors[1] < errors[0] < 0.6
    assert [len(np.unique(level)) for level in codes.T] == [8, 8, 8]


def test_numpy_gives_the_codes_and_reconstructions_of_torch(book, x, tmp_path):
    save_codebooks({"codes_vqvae": book}, tmp_path / "book")
    read = load_codebooks(tmp_path / "book")["codes_vqvae"]
    model = RQVAE(6, (32,), 4, 3, 8)
    with torch.no_grad():
        model.codebooks.copy_(torch.from_numpy(read.centroids))
        for network, layers in ((model.encoder, read.encoder), (model.decoder, read.decoder)):
            for module, layer in zip((network[0], network[2]), layers, strict=True):
                module.weight.copy_(torch.from_numpy(layer.weight))
                module.bias.copy_(torch.from_numpy(layer.bias))
        codes, chosen, _ = model.quantize(model.encoder(torch.from_numpy(book.space.transform(x))))
        decoded = model.decoder(chosen.sum(dim=1)).numpy()
    assert (read.encode(x) == codes.numpy()).all()
    np.testing.assert_allclose(read.decode(codes.numpy()), read.space.inverse_transform(decoded), atol=1e-5)


def test_one_seed_one_result_and_the_global_random_state_stays(x):
    before = torch.random.get_rng_state()
    first, again, other = (fit(x, steps=30, seed=s).centroids for s in (1, 1, 2))
    assert (first == again).all()
    assert not np.allclose(first, other)
    assert (torch.random.get_rng_state() == before).all()


def test_codes_do_not_depend_on_the_unit_of_the_embeddings(x):
    small, large = fit(x, steps=60), fit(x * np.float32(1024), steps=60)
    assert (small.encode(x) == large.encode(x * np.float32(1024))).mean() > 0.99


def test_a_learning_rate_that_is_too_large(x):
    with raises_naming(UserError, "--learning-rate"):
        fit(x, learning_rate=1e30)
