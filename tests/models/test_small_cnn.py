import subprocess
import sys

import pytest
import torch

from certbench.errors import CertbenchError
from certbench.models import small_cnn


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 47), (224, 224)])
def test_any_image_size_gives_logits_of_the_classes(size):
    net = small_cnn.build(small_cnn.Params(width=3), 7).eval()
    assert net(torch.rand(2, 3, *size)).shape == (2, 7)


def test_the_number_of_parameters_is_that_of_three_convolutions_and_a_layer():
    w, k = 16, 10
    count = sum(p.numel() for p in small_cnn.build(small_cnn.Params(width=w), k).parameters())
    convolutions = 3 * w * 9 + w * 2 * w * 9 + 2 * w * 2 * w * 9
    normalisations = 2 * (w + 2 * w + 2 * w)
    assert count == convolutions + normalisations + (2 * w * 16 + 1) * k


def test_published_weights_are_refused():
    with pytest.raises(CertbenchError, match="no published weights"):
        small_cnn.build(small_cnn.Params(), 10, pretrained=True)


@pytest.mark.parametrize("name", ["small_cnn", "cifar_resnet"])
def test_planning_imports_the_builder_without_torch(name):
    code = f"import sys, certbench.models.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
