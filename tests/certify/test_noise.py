"""The scheme's known answers, its independence of batches, and its distribution."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from certbench.certify import _noise_native, noise
from certbench.errors import CertbenchError

SEED = 0x0123456789ABCDEF

# stream, image, sample, block, words, normals
NOISE_ANSWERS = [
    (1, 7, 42, 0, "767e618b d6b720e7 cef6f65f 7dc0957f",
     (0.6567090858, -1.0532658177, -0.6511263253, 0.0359573799)),
    (1, 7, 42, 1, "6fb70043 97ffb31d 4b0750af 8fe1677e",
     (-1.0707958203, -0.7154382957, -1.4492145614, -0.5953099733)),
    (0, 7, 42, 0, "e67dcded 6a70654a 9ff52819 becf8dc4",
     (-0.3955082327, 0.2313024431, -0.0283032788, -0.9693996668)),
    (1, 7, 43, 0, "11a7be0f ba07c2a5 5d53b7a9 2e3f3df6",
     (-0.3376321999, -2.2878578856, 0.5995918028, 1.2878762341)),
    (1, 8, 42, 0, "0917a81f 366e9668 288d2589 af829afb",
     (0.6011791338, 2.5127790862, -0.7559025261, -1.7646041814)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, words):
    assert [f"{word:08x}" for word in noise.philox4x32(counter, key)] == words.split()


@pytest.mark.parametrize(("stream", "image", "sample", "block", "words", "normals"), NOISE_ANSWERS)
def test_noise_known_answers(stream, image, sample, block, words, normals):
    key = (SEED % 2**32, SEED >> 32)
    drawn = noise.philox4x32((block, sample, image, stream), key)
    assert [f"{word:08x}" for word in drawn] == words.split()
    made = noise.philox_normal(SEED, stream, image, sample, 4 * block + 4)[4 * block :]
    assert made == pytest.approx(normals, abs=1e-9)


def test_many_samples_are_the_rows_of_single_ones_and_a_shorter_sample_is_a_prefix():
    rows = noise.philox_normal(SEED, noise.ESTIMATION, 3, np.array([5, 9, 2**32 - 1]), 10)
    assert rows.shape == (3, 10)
    assert np.array_equal(rows[1], noise.philox_normal(SEED, 1, 3, 9, 10))
    assert np.array_equal(rows[2, :7], noise.philox_normal(SEED, 1, 3, 2**32 - 1, 7))


def test_the_seed_of_a_data_set_is_fixed_for_ever():
    # Recorded once: another value would silently change every result.
    assert noise.seed64(0, "digits") == 0x9D050DCE8970CE0F
    assert noise.seed64(20260101, "cifar10") == 0xE783604DC7A8522F
    assert noise.seed64(0, "digits") != noise.seed64(1, "digits")
    assert noise.seed64(0, "digits") != noise.seed64(0, "streets")
    assert 0 <= noise.seed64(-5, "x") < 2**64


def test_streams_do_not_share_numbers():
    streams = (
        noise.SELECTION,
        noise.ESTIMATION,
        noise.PREDICTION,
        noise.AUDIT,
        noise.TRAINING,
        noise.ATTACK,
        noise.COIN,
    )
    assert streams == (0, 1, 2, 3, 16, 17, 18)
    first = {float(noise.philox_normal(SEED, stream, 0, 0, 1)[0]) for stream in streams}
    assert len(first) == len(streams)


def test_reference_normals_and_uniforms_have_their_distribution():
    # Fixed seed; each Kolmogorov-Smirnov test would fail by chance with probability 1e-6.
    normals = noise.philox_normal(2024, noise.ESTIMATION, 11, np.arange(300), 3072).ravel()
    assert stats.kstest(normals[::3], "norm").pvalue > 1e-6
    uniforms = noise.philox_uniform(2024, noise.ESTIMATION, 11, np.arange(100), 3072).ravel()
    assert stats.kstest(uniforms, stats.uniform(-1, 2).cdf).pvalue > 1e-6
    # Moments within 5 standard errors: false-alarm probability 6e-7 each.
    m = normals.size
    assert abs(normals.mean()) < 5 / np.sqrt(m)
    assert abs(normals.var() - 1) < 5 * np.sqrt(2 / m)
    assert abs((normals**3).mean()) < 5 * np.sqrt(15 / m)
    assert abs((normals**4).mean() - 3) < 5 * np.sqrt(96 / m)
    # Beyond 4 sigma in both tails: Poisson, 5 standard errors.
    expected = m * 2 * stats.norm.sf(4)
    assert abs(np.sum(np.abs(normals) > 4) - expected) < 5 * np.sqrt(expected)


def test_neighbours_in_every_coordinate_are_uncorrelated():
    # 5 standard errors of a correlation of m pairs: false-alarm probability 6e-7 each.
    def draw(stream=1, image=0, sample=0):
        return noise.philox_normal(99, stream, image, np.arange(sample, sample + 20), 3072).ravel()

    base = draw()
    for other in (draw(image=1), draw(stream=0), draw(stream=2), draw(sample=20), np.roll(base, 1)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / np.sqrt(base.size)
        assert abs(np.corrcoef(base**2, other**2)[0, 1]) < 5 / np.sqrt(base.size)


def test_the_coin_is_fixed_by_seed_and_image_and_uniform():
    coins = noise.uniform_coin(SEED, np.arange(20000))
    assert coins[17] == noise.uniform_coin(SEED, 17)
    assert coins.min() > 0 and coins.max() < 1
    assert stats.kstest(coins, "uniform").pvalue > 1e-6  # false-alarm probability 1e-6
    assert noise.uniform_coin(SEED + 1, 17) != coins[17]


# --- torch -------------------------------------------------------------------------------------

NEEDS_COMPILER = pytest.mark.skipif(
    _noise_native.compiler() is None, reason="needs a C++ compiler (c++, g++ or clang++)"
)
BACKENDS = ["eager", pytest.param("compiled", marks=NEEDS_COMPILER)]


def pairs(count):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 2**32, (count,), generator=generator)
    samples = torch.randint(0, 2**32, (count,), generator=generator)
    return images, samples


def reference(make, images, samples, elements):
    return np.stack(
        [make(SEED, 1, int(i), int(s), elements) for i, s in zip(images, samples, strict=True)]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 5, 7), (1,)])
def test_batches_match_the_reference(backend, shape):
    images, samples = pairs(61)
    made = noise.noise_batch(SEED, 1, images, samples, shape, 0.25, backend=backend)
    assert made.shape == (61, *shape) and made.dtype == torch.float32
    exact = reference(noise.philox_normal, images, samples, int(np.prod(shape)))
    error = np.abs(made.view(61, -1).numpy() / 0.25 - exact)
    assert error.max() <= 5e-6
    uniform = noise.uniform_batch(SEED, 1, images, samples, shape, 0.5, backend=backend)
    exact = reference(noise.philox_uniform, images, samples, int(np.prod(shape)))
    assert np.array_equal(uniform.view(61, -1).numpy(), (0.5 * exact).astype(np.float32))


NEAR = np.arange(4000)
EXTREME_WORDS = np.concatenate(
    [NEAR, 2**32 - 1 - NEAR, *(k * 2**29 - 2000 + NEAR for k in range(1, 8))]
)


def test_extreme_words_keep_their_accuracy():
    from certbench.certify._noise_torch import _log_uniform, _waves

    words = torch.from_numpy(EXTREME_WORDS).to(torch.int32)
    u = (EXTREME_WORDS + 0.5) / 2**32
    made = _log_uniform(words).numpy()
    exact = np.where(u < 0.5, np.log(u), np.log1p(-(2**32 - EXTREME_WORDS - 0.5) / 2**32))
    assert np.max(np.abs(made - exact) / np.abs(exact)) < 3e-7
    for made, exact in zip(_waves(words), (np.cos, np.sin), strict=True):
        assert np.max(np.abs(made.numpy() - exact(2 * np.pi * u))) < 2e-7


def single(words, scale):
    """Normals of uint32 words [..., 4] by the operations that define them, each in float32."""
    f32 = np.float32
    signed = words.view(np.int32)
    first, second = signed[..., 0::2], signed[..., 1::2]
    upper = first < 0
    part = (np.where(upper, ~first, first).astype(f32) + f32(0.5)) * f32(2**-32)
    above = f32(1) - part
    carried = np.where(upper, (f32(1) - above) - part, f32(0))
    mantissa, exponent = np.frexp(np.where(upper, above, part))
    low = mantissa < f32(float.fromhex("0x1.6a09e6p-1"))
    f = np.where(low, mantissa * f32(2), mantissa) - f32(1)
    k = (exponent - low).astype(f32)
    series = f32(0.06746640801429749)
    for c in (
        -0.11675652116537094,
        0.11888162046670914,
        -0.1240558922290802,
        0.14219552278518677,
        -0.1666799634695053,
        0.2000211924314499,
        -0.25000008940696716,
        0.3333331346511841,
    ):
        series = series * f + f32(c)  # fmt: skip
    square = f * f
    rest = (series * f) * square + square * f32(-0.5)
    rest = (rest + k * f32(-2.12194440e-4)) + carried
    radius = np.sqrt((k * f32(0.693359375) + (f + rest)) * f32(-2))
    quarter = np.floor((second.astype(np.int64) + 2**29) / 2**30).astype(np.int64)
    x = ((second - quarter * 2**30).astype(f32) + f32(0.5)) * f32(2 * np.pi * 2**-32)
    z = x * x
    sine = (z * f32(-0.00019588008581195027) + f32(0.008332748897373676)) * z
    sine = (sine + f32(-0.166666641831398)) * z * x + x
    cosine = (z * f32(2.454804052831605e-05) + f32(-0.001388830365613103)) * z
    cosine = (cosine + f32(0.0416666641831398)) * z * z + (z * f32(-0.5) + f32(1))
    turns = [(cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine)]
    waves = [np.choose(quarter % 4, [turn[i] for turn in turns]) for i in range(2)]
    made = np.stack([radius * wave * f32(scale) for wave in waves], -1)
    assert made.dtype == f32
    return made.reshape(*words.shape[:-1], 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_bits_of_the_definition(backend):
    images = torch.tensor([7, 2**32 - 1, 0, *range(200)])
    samples = torch.tensor([2**32 - 1, 0, 42, *range(1000, 1200)])
    key = (SEED % 2**32, SEED >> 32)
    counter = np.zeros((203, 320, 4), np.uint64)
    counter[..., 0], counter[..., 3] = np.arange(320), noise.AUDIT
    counter[..., 1], counter[..., 2] = samples[:, None], images[:, None]
    exact = single(noise.philox4x32(counter, key), 0.37).reshape(203, -1)
    for elements in (1280, 1277):
        made = noise.noise_batch(
            SEED, noise.AUDIT, images, samples, (elements,), 0.37, backend=backend
        )
        assert np.array_equal(made.numpy().view(np.int32), exact[:, :elements].view(np.int32))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 5, 7), (1, 8, 8)])
def test_any_split_of_the_rows_gives_the_same_bits(backend, shape):
    images, samples = pairs(130)

    def made(size, order=slice(None)):
        i, s = images[order], samples[order]
        parts = [
            noise.noise_batch(
                SEED, 1, i[k : k + size], s[k : k + size], shape, 0.5, backend=backend
            )
            for k in range(0, 130, size)
        ]
        return torch.cat(parts)

    whole = made(130)
    for size in (1, 7, 64):
        assert torch.equal(made(size), whole)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(64, order), whole[order])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_number_of_threads_changes_no_bit(backend):
    images, samples = pairs(100)
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(
                noise.noise_batch(SEED, 1, images, samples, (3, 32, 32), 1.0, backend=backend)
            )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


def test_noise_scales_with_sigma_and_is_shared_between_levels():
    images, samples = pairs(4)
    unit = noise.noise_batch(SEED, 1, images, samples, (2, 9), 1.0, backend="eager")
    for sigma in (0.12, 0.5, 2.0):
        made = noise.noise_batch(SEED, 1, images, samples, (2, 9), sigma, backend="eager")
        assert torch.equal(made, unit * sigma)
    assert not noise.noise_batch(SEED, 1, images, samples, (2, 9), 0.0, backend="eager").any()


def test_output_buffers_modes_and_types():
    images, samples = pairs(3)
    plain = noise.noise_batch(SEED, 1, images, samples, (7,), 1.0, backend="eager")
    buffer = torch.full((3, 7), torch.nan)
    given = noise.noise_batch(SEED, 1, images, samples, (7,), 1.0, backend="eager", out=buffer)
    assert given is buffer and torch.equal(buffer, plain)
    with torch.inference_mode():
        inside = noise.noise_batch(SEED, 1, images, samples, (7,), 1.0, backend="eager")
        noise.noise_batch(SEED, 1, images, samples, (7,), 1.0, backend="eager", out=inside)
    assert torch.equal(inside, plain)
    assert not plain.is_inference()  # usable in training
    wide = noise.noise_batch(
        SEED, 1, images, samples, (7,), 1.0, dtype=torch.float64, backend="eager"
    )
    assert wide.dtype == torch.float64 and torch.equal(wide.float(), plain)
    empty = torch.empty(0, dtype=torch.int64)
    assert noise.noise_batch(SEED, 1, empty, empty, (7,), 1.0, backend="eager").shape == (0, 7)


@NEEDS_COMPILER
def test_compiled_noise_works_in_every_grad_mode():
    images, samples = pairs(5)

    def made(**options):
        return noise.noise_batch(
            SEED, 1, images, samples, (3, 8, 8), 1.0, backend="compiled", **options
        )

    plain = made()
    with torch.inference_mode():
        inside = made()
        made(out=inside)
    with torch.no_grad():
        assert torch.equal(made(), plain)
    assert torch.equal(inside, plain) and not plain.is_inference()


@NEEDS_COMPILER
def test_auto_takes_the_compiled_backend_where_there_is_a_compiler_and_eager_elsewhere(monkeypatch):
    assert noise.resolve_backend("cpu") == "compiled"
    monkeypatch.setattr(_noise_native, "compiler", lambda: None)
    assert noise.resolve_backend("cpu") == "eager"


@NEEDS_COMPILER
def test_a_backend_that_fails_its_trial_is_not_used(monkeypatch):
    from certbench.certify import _noise_torch

    def broken(*arguments):
        raise RuntimeError("no compiler")

    def wrong(kind, keys, stream, images, samples, scale, out):
        out.zero_()

    for fill in (broken, wrong):
        _noise_torch._works.cache_clear()
        monkeypatch.setattr(_noise_native, "fill", fill)
        assert noise.resolve_backend("cpu", "auto") == "eager"
        with pytest.raises(CertbenchError, match="does not work on cpu"):
            noise.resolve_backend("cpu", "compiled")
    _noise_torch._works.cache_clear()


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """The loader of the compiled kernel with empty folders to build in."""
    from certbench.certify import _noise_torch

    for cached in (_noise_native._library, _noise_torch._works):
        cached.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_noise_native.tempfile, "gettempdir", lambda: str(tmp_path))
    yield _noise_native
    for cached in (_noise_native._library, _noise_torch._works):
        cached.cache_clear()


@NEEDS_COMPILER
def test_the_compiled_kernel_is_built_once_per_source_and_processor(unbuilt, monkeypatch, tmp_path):
    built = unbuilt._built()
    assert built.parent == tmp_path / "cache" / "certbench" and built.suffix == ".so"
    made = built.stat().st_mtime_ns
    assert unbuilt._built() == built and built.stat().st_mtime_ns == made
    monkeypatch.setattr(unbuilt, "_processor", lambda: "another")
    other = unbuilt._built()
    assert other != built and sorted(built.parent.iterdir()) == sorted([built, other])


@NEEDS_COMPILER
def test_where_the_home_folder_takes_no_file_the_kernel_is_kept_with_temporary_files(
    unbuilt, monkeypatch, tmp_path
):
    (tmp_path / "cache").write_text("a file where a folder should be")
    built = unbuilt._built()
    assert built.parent.parent == tmp_path and built.parent.name.startswith("certbench-")
    assert noise.resolve_backend("cpu") == "compiled"
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(unbuilt.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="can be written"):
        unbuilt._built()


@NEEDS_COMPILER
def test_a_kernel_in_a_folder_that_others_may_write_is_not_loaded(unbuilt, tmp_path):
    first = unbuilt._built()
    first.parent.chmod(0o777)
    other = unbuilt._built()
    assert other != first and other.parent.parent == tmp_path
    assert other.parent.stat().st_mode & 0o777 == 0o700


def test_a_compiler_that_fails_costs_speed_only(unbuilt, monkeypatch, tmp_path, caplog):
    failing = tmp_path / "c++"
    failing.write_text("#!/bin/sh\necho the disk of the compiler is on fire >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    assert noise.resolve_backend("cpu") == "eager"
    assert "on fire" in caplog.text
    assert not list(tmp_path.rglob("*.so"))


@NEEDS_COMPILER
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 20, 19), (1, 4, 4), (2, 3, 1), (5, 64, 64)])
@pytest.mark.parametrize(("kind", "normalised"), [("normal", True), ("uniform", False)])
def test_compiled_inputs_have_the_values_of_separate_steps(layout, shape, kind, normalised):
    ids, samples = pairs(40)
    slots = torch.arange(40) % 3
    pictures = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    shift = torch.linspace(0.3, 0.6, shape[0])[:, None, None] if normalised else None
    factor = torch.linspace(2, 5, shape[0])[:, None, None] if normalised else None
    make = noise.noise_batch if kind == "normal" else noise.uniform_batch
    plain = pictures[slots] + make(SEED, 1, ids, samples, shape, 0.37, backend="eager")
    if normalised:
        plain = (plain - shift) * factor
    out = torch.full((40, *shape), torch.nan).contiguous(memory_format=layout)
    noise.add_noise(
        kind, SEED, 1, ids, samples, 0.37, pictures, slots, out, shift, factor, backend="compiled"
    )
    assert torch.equal(out, plain)


KERNEL_CHECK = """
import numpy as np, torch
from certbench.certify import noise
seed = 0xF123456789ABCDEF
images = torch.tensor([7, 2**32 - 1, 0]); samples = torch.tensor([42, 2**32 - 1, 5])
assert noise.resolve_backend("cpu", "triton") == "triton"
for shape in ((3, 32, 32), (3, 5, 7), (1,)):
    n = int(np.prod(shape))
    args = (seed, 1, images, samples, shape, 1.0)
    made = noise.noise_batch(*args, backend="triton")
    exact = np.stack([noise.philox_normal(seed, 1, int(i), int(s), n)
                      for i, s in zip(images, samples)])
    assert np.abs(made.view(3, -1).numpy() - exact).max() < 5e-6
    assert torch.equal(made, noise.noise_batch(*args, backend="eager"))
    alone = noise.noise_batch(seed, 1, images[1:2], samples[1:2], shape, 1.0, backend="triton")
    assert torch.equal(alone[0], made[1])
    uniform = noise.uniform_batch(*args, backend="triton")
    assert torch.equal(uniform, noise.uniform_batch(*args, backend="eager"))
"""

FUSED_CHECK = """
import itertools
import torch
from certbench.certify import noise, sampling
from certbench.models import network

ids, samples = torch.tensor([7, 8, 2**32 - 1, 7]), torch.tensor([42, 0, 5, 43])
slots = torch.tensor([1, 0, 1, 1])
seed, sigma = 0x0123456789ABCDEF, 0.37
layouts = (torch.contiguous_format, torch.channels_last)
shapes = ((3, 20, 19), (1, 4, 4), (2, 3, 1))
# The interpreter cuts bfloat16 instead of rounding it; the test on a GPU has that type.
half, single = torch.float16, torch.float32
ways = (("normal", True, single), ("normal", False, half), ("uniform", True, half))
for shape, layout, (kind, normalised, dtype) in itertools.product(shapes, layouts, ways):
    pictures = torch.rand(2, *shape)
    shift = torch.rand(shape[0], 1, 1) if normalised else None
    factor = 1 + torch.rand(shape[0], 1, 1) if normalised else None
    make = noise.noise_batch if kind == "normal" else noise.uniform_batch
    plain = pictures[slots] + make(seed, 1, ids, samples, shape, sigma, backend="triton")
    if normalised:
        plain = (plain - shift) * factor
    out = torch.empty((4, *shape), dtype=dtype).contiguous(memory_format=layout)
    drawn = (kind, seed, 1, ids, samples, sigma, pictures, slots, out, shift, factor)
    noise.add_noise(*drawn, backend="triton")
    assert torch.equal(out, plain.to(dtype)), (shape, layout, kind, normalised, dtype)

# The sampling path: the folded network's own normalisation moves into the kernel.
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(256, 5)
)
whole = network.Network(net, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25], 5).eval()
folded, _ = sampling.for_inference(whole)
assert folded.shift is not None
inputs = []
folded.net.register_forward_pre_hook(lambda module, given: inputs.append(given[0].clone()))
images = torch.rand(2, 3, 8, 8)
options = dict(sigma=0.5, num_classes=5, batch_size=40, numerics="fast", device="cpu")
drawn = sampling.Noise(seed, "triton")
fused = sampling.count_votes(folded, images, [3, 9], 1, 0, 20, noise=drawn, **options)
perturb = sampling.additive(drawn, 0.5, 1, images, "cpu", 40)
apart = sampling.count_votes(
    folded, images, [3, 9], 1, 0, 20, noise=drawn, perturb=perturb, **options
)
assert len(inputs) == 2 and torch.equal(*inputs)
assert (fused == apart).all()
"""


def interpreted(code):
    """Run code in a process of its own, in which Triton's kernels run on the CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_triton_kernel_matches_the_reference_in_the_interpreter():
    pytest.importorskip("triton")
    interpreted(KERNEL_CHECK)


def test_fused_inputs_have_the_values_of_separate_steps_in_the_interpreter():
    pytest.importorskip("triton")
    interpreted(FUSED_CHECK)


def test_the_triton_kernel_compiles_for_gpus_that_are_not_here():
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from certbench.certify import _noise_triton

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels are not compiled")
    target = GPUTarget("cuda", 80, 32)
    # What launches pass: without it the compiler would contract products and sums.
    options = {"enable_fp_fusion": False}
    shared = {"out": "*fp32", "images": "*i64", "samples": "*i64", "scale": "fp32"}
    shared |= dict.fromkeys(("key0", "key1", "stream", "elements", "tiles"), "i32")
    added = {"out": "*bf16", "pictures": "*fp32", "slots": "*i64"}
    added |= dict.fromkeys(("shift", "factor"), "*fp32")
    strides = ("plane", "row_stride", "channel_stride", "pixel_stride")
    added |= dict.fromkeys(strides, "i32")
    for normal, fused in ((True, False), (False, False), (True, True)):
        constants = {"NORMAL": normal, "BLOCK": _noise_triton.BLOCK}
        if fused:
            constants |= {"SHIFT": True, "FACTOR": True}
        source = ASTSource(
            fn=_noise_triton._add_kernel if fused else _noise_triton._kernel,
            signature=shared | (added if fused else {}) | dict.fromkeys(constants, "constexpr"),
            constexprs=constants,
        )
        built = triton.compile(source, target=target, options=options)
        assert "mul.hi.u32" in built.asm["ptx"] and "fma" not in built.asm["ptx"]
        assert built.asm["cubin"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_inputs_have_the_values_of_separate_steps_on_a_gpu():
    images, samples = (t.cuda() for t in pairs(50))
    pictures, slots = torch.rand(4, 3, 32, 32).cuda(), torch.arange(50).cuda() % 4
    shift, factor = torch.rand(3, 1, 1).cuda(), 1 + torch.rand(3, 1, 1).cuda()
    drawn = noise.noise_batch(SEED, 1, images, samples, (3, 32, 32), 0.5, backend="triton")
    plain = (pictures[slots] + drawn - shift) * factor
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        out = torch.empty_like(plain, dtype=dtype).contiguous(memory_format=torch.channels_last)
        drawn = ("normal", SEED, 1, images, samples, 0.5, pictures, slots, out, shift, factor)
        noise.add_noise(*drawn, backend="triton")
        assert torch.equal(out, plain.to(dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_triton_kernel_matches_the_reference_on_a_gpu():
    images, samples = pairs(50)
    made = noise.noise_batch(SEED, 1, images, samples, (3, 32, 32), 1.0, "cuda", backend="triton")
    error = np.abs(
        made.view(50, -1).cpu().numpy() - reference(noise.philox_normal, images, samples, 3072)
    )
    assert error.max() <= 5e-6
    eager = noise.noise_batch(SEED, 1, images, samples, (3, 32, 32), 1.0, backend="eager")
    assert torch.equal(made.cpu(), eager)


IDS = torch.arange(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise.noise_batch(2**64, 1, IDS, IDS, (4,), 1.0), "64 bits"),
        (lambda: noise.noise_batch(-1, 1, IDS, IDS, (4,), 1.0), "64 bits"),
        (lambda: noise.noise_batch(0, 1, IDS.int(), IDS, (4,), 1.0), "int64"),
        (lambda: noise.noise_batch(0, 1, IDS, IDS[:1], (4,), 1.0), "one sample per row"),
        (lambda: noise.noise_batch(0, 1, IDS - 1, IDS, (4,), 1.0), r"\[0, 2\^32\)"),
        (lambda: noise.noise_batch(0, 1, IDS, IDS + 2**32, (4,), 1.0), r"\[0, 2\^32\)"),
        (lambda: noise.noise_batch(0, 1, IDS, IDS, (4,), -0.5), "not negative"),
        (lambda: noise.noise_batch(0, 1, IDS, IDS, (4,), float("nan")), "not negative"),
        (lambda: noise.noise_batch(0, 1, IDS, IDS, (4,), 1.0, dtype=torch.bfloat16), "cast"),
        (lambda: noise.noise_batch(0, 1, IDS, IDS, (4,), 1.0, out=torch.empty(2, 5)), "contiguous"),
        (lambda: noise.noise_batch(0, 1, IDS, IDS, (4,), 1.0, backend="tritn"), "triton"),
        (lambda: noise.philox_normal(0, 1, -1, 0, 4), r"\[0, 2\^32\)"),
        (lambda: noise.philox_normal(0, 1, 0, 0.5, 4), "integer"),
        (lambda: noise.philox_normal(0, 1, 0, 0, 0), "at least 1"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, message):
    with pytest.raises(CertbenchError, match=message):
        call()


def test_importing_the_module_loads_no_torch():
    code = "import sys, certbench.certify.noise; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
